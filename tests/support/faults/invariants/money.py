"""At most one charge for each request, by the stated rule; each hold ended once; nobody beyond the grant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from tests.support.faults.evidence import Evidence, Row
from tests.support.faults.report import Violation

_CHARGED_KINDS = ("charge", "debt")


def tokens_due(message: Row) -> int:
    """The rule, in words of its own: an answer costs its call's tokens, a cancelled call what it used."""
    usage = message["usage"]
    used: int = usage["input_tokens"] + usage["output_tokens"] if usage else 0
    pays = message["status"] in ("completed", "incomplete")
    pays = pays or (message["status"] == "cancelled" and message["provider_called"])
    return used if pays else 0


def each_request_is_charged_once_and_rightly(evidence: Evidence) -> Iterator[Violation]:
    results = {row["request_id"]: row["message"] for row in evidence.rows["results"]}
    entries = Counter((row["request_id"], row["kind"]) for row in evidence.rows["ledger"])
    charged: Counter[str] = Counter()
    for row in evidence.rows["ledger"]:
        if row["kind"] in _CHARGED_KINDS:
            charged[row["request_id"]] += row["tokens"]
    for (request_id, kind), count in entries.items():
        if count > 1:
            yield Violation("charged_twice", request_id, f"{count} entries of kind {kind}")
    for request_id in results.keys() | charged.keys():
        due = tokens_due(results[request_id]) if request_id in results else 0
        if charged[request_id] > due:
            yield Violation("charged_twice", request_id, f"charged {charged[request_id]} tokens, due are {due}")
        elif charged[request_id] < due:
            yield Violation("unexpected", request_id, f"charged {charged[request_id]} tokens, due are {due}")


def each_hold_ended_once(evidence: Evidence) -> Iterator[Violation]:
    results = {row["request_id"]: row["message"] for row in evidence.rows["results"]}
    holds = evidence.by_request("holds")
    for request_id, message in results.items():
        for hold in holds.get(request_id, ()):
            state = "settled" if _settles(message) else "released"
            if hold["state"] == "expired" and state == "released" and _was_out_of_reach(evidence, request_id):
                continue
            if hold["state"] != state:
                yield Violation("unexpected", request_id, f"its hold is {hold['state']}, not {state}")
            elif hold["charged_tokens"] != tokens_due(message):
                text = f"its hold says {hold['charged_tokens']} tokens, due are {tokens_due(message)}"
                yield Violation("unexpected", request_id, text)
        if request_id not in holds:
            yield Violation("unexpected", request_id, "billing never heard that it ended")


def _was_out_of_reach(evidence: Evidence, request_id: str) -> bool:
    """A hold expires a grace later than its request has to end: a longer outage may keep the end from billing."""
    for row in evidence.by_request("requests", "id").get(request_id, ()):
        expiry = row["deadline_at"].timestamp() + 2 * evidence.grace_seconds
        return evidence.outage_seconds(row["accepted_at"].timestamp(), expiry) > evidence.grace_seconds
    return False


def _settles(message: Row) -> bool:
    if message["status"] == "cancelled":
        return bool(message["provider_called"])
    return message["status"] in ("completed", "incomplete")


def no_account_is_beyond_its_grant(evidence: Evidence) -> Iterator[Violation]:
    ledger: Counter[str] = Counter()
    for row in evidence.rows["ledger"]:
        if row["kind"] == "charge":
            ledger[row["account_id"]] += row["tokens"]
    for row in evidence.rows["credits"]:
        account_id = row["account_id"]
        if row["granted"] is not None and row["settled"] + row["held"] > row["granted"]:
            yield Violation("unexpected", account_id, f"{row['settled']} + {row['held']} > {row['granted']} tokens")
        if row["held"] != 0:
            yield Violation("unexpected", account_id, f"{row['held']} tokens are held, and nothing runs")
        if row["settled"] != ledger[account_id]:
            text = f"settled are {row['settled']} tokens, the ledger says {ledger[account_id]}"
            yield Violation("unexpected", account_id, text)


CHECKS = (each_request_is_charged_once_and_rightly, each_hold_ended_once, no_account_is_beyond_its_grant)
