"""When all has come to rest nothing is left over: no debt of a publish, no open task, no parked message."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.faults.evidence import Evidence
from tests.support.faults.report import Violation


def nothing_is_parked(evidence: Evidence) -> Iterator[Violation]:
    for row in evidence.parked:
        yield Violation("unexpected", str(row["ce_id"]), f"parked by {row['service']}: {row['reason']}")


def nothing_is_owed(evidence: Evidence) -> Iterator[Violation]:
    for row in evidence.rows["requests"]:
        if row["owed"]:
            yield Violation("unexpected", row["id"], "the gateway owes a publish for it")
    for row in evidence.rows["tasks"]:
        if row["state"] == "finished" and row["ended_published_at"] is None:
            yield Violation("unexpected", row["request_id"], "the orchestrator owes its session.ended")
    for row in evidence.rows["eligibilities"]:
        if row["published_sequence"] < row["sequence"]:
            yield Violation("unexpected", row["account_id"], "billing owes an eligibility.changed")


def nothing_is_under_way(evidence: Evidence) -> Iterator[Violation]:
    for row in evidence.rows["tasks"]:
        if row["state"] != "finished":
            yield Violation("unexpected", row["request_id"], f"its task is {row['state']}")
    for row in evidence.rows["attempts"]:
        if row["ended_at"] is None:
            yield Violation("unexpected", row["request_id"], f"its attempt {row['attempt']} has no end")


def no_session_is_stuck(evidence: Evidence) -> Iterator[Violation]:
    open_requests = {row["id"] for row in evidence.rows["requests"] if row["ended_at"] is None}
    for row in evidence.rows["sessions"]:
        if row["open_requests"] != 0 and not open_requests:
            yield Violation("unexpected", row["id"], f"counts {row['open_requests']} open requests, and there are none")


def nothing_is_overdue(evidence: Evidence) -> Iterator[Violation]:
    if evidence.requests_overdue:
        yield Violation("unexpected", "parley_requests_overdue", f"is {evidence.requests_overdue:g}")


def every_queue_is_read_again(evidence: Evidence) -> Iterator[Violation]:
    for queue, missing in evidence.consumers_missing.items():
        yield Violation("unexpected", queue, f"{missing} processes that live do not read it")


def the_gateway_has_heard_billings_last_word(evidence: Evidence) -> Iterator[Violation]:
    heard = {row["account_id"]: row["sequence"] for row in evidence.rows["copies"]}
    for row in evidence.rows["eligibilities"]:
        if row["sequence"] > 0 and heard.get(row["account_id"]) != row["sequence"]:
            text = f"the gateway has eligibility {heard.get(row['account_id'])}, billing {row['sequence']}"
            yield Violation("unexpected", row["account_id"], text)


CHECKS = (
    nothing_is_parked,
    nothing_is_owed,
    nothing_is_under_way,
    no_session_is_stuck,
    nothing_is_overdue,
    every_queue_is_read_again,
    the_gateway_has_heard_billings_last_word,
)
