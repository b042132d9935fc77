"""The judge itself: an orderly run has no violation, and each broken promise that is planted is found by its name."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.orchestrator.routing import Deployment
from tests.support.faults.client import Event, Seen
from tests.support.faults.evidence import Evidence
from tests.support.faults.invariants import violations
from tests.support.faults.invariants.money import each_hold_ended_once
from tests.support.faults.load import Post

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
ACCOUNT, SESSION = "acct_1", "ses_1"
CURSOR = 2**20
MAIN = Deployment(
    name="main",
    provider="openai",
    model="model",
    quota_domain="openai",
    requests_per_minute=3,
    tokens_per_minute=250,
)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def item(role: str, content: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


def orderly() -> Evidence:
    """A session of two turns; the first needed a second attempt, the second one call."""
    evidence = Evidence(posts=[], seen=[], problems=[], rows=_tables(), calls=[], deployments=[MAIN], grace_seconds=20)
    _turn(evidence, 1, begins=0, attempts=2)
    _turn(evidence, 2, begins=10, attempts=1)
    evidence.rows["sessions"].append({"id": SESSION, "running": None, "open_requests": 0})
    evidence.rows["credits"].append(
        {"account_id": ACCOUNT, "granted": 1000, "settled": 60, "held": 0, "requests_charged": 2}
    )
    evidence.rows["eligibilities"].append({"account_id": ACCOUNT, "sequence": 3, "published_sequence": 3})
    evidence.rows["copies"].append({"account_id": ACCOUNT, "sequence": 3})
    return evidence


def _tables() -> dict[str, list[Any]]:
    names = "requests sessions tasks attempts journal decisions holds ledger credits eligibilities copies results"
    return {name: [] for name in (*names.split(), "events", "late")}


def _turn(evidence: Evidence, seq: int, *, begins: float, attempts: int) -> None:
    request_id, marker = f"req_{seq}", f"test-{seq}"
    asked = f"Turn {seq} of [[{marker}]]"
    text = f"You said: {asked} | word"
    message = {
        "status": "completed",
        "output": {"items": [item("assistant", text)]},
        "usage": {"input_tokens": 10, "output_tokens": 20},
        "provider_called": True,
    }
    ended = begins + attempts
    rows = evidence.rows
    rows["requests"].append(
        {
            "id": request_id,
            "session_id": SESSION,
            "account_id": ACCOUNT,
            "seq": seq,
            "state": "completed",
            "result": message,
            "accepted_at": at(begins),
            "deadline_at": at(begins + 100),
            "ended_at": at(ended),
            "input": [item("user", asked)],
            "owed": 0,
        }
    )
    rows["results"].append(
        {
            "request_id": request_id,
            "session_id": SESSION,
            "seq": seq,
            "status": "completed",
            "ended_by": "session.ended",
            "message": message,
            "input": [item("user", asked)],
            "stored_at": at(ended),
        }
    )
    rows["tasks"].append(
        {
            "request_id": request_id,
            "state": "finished",
            "fence": 1,
            "workers_lost": 0,
            "ended_published_at": at(ended),
        }
    )
    rows["decisions"].append({"request_id": request_id, "decision": "ALLOW", "decided_at": at(begins)})
    rows["holds"].append({"request_id": request_id, "state": "settled", "charged_tokens": 30})
    rows["ledger"].append({"request_id": request_id, "account_id": ACCOUNT, "kind": "charge", "tokens": 30})
    history = [pair for row in rows["results"][:-1] for pair in (row["input"][0], row["message"]["output"]["items"][0])]
    for number in range(1, attempts + 1):
        _attempt(evidence, request_id, marker, number, begins, last=number == attempts)
        evidence.calls[-1]["messages"] = [*history, item("user", asked)]
    evidence.posts = [
        *evidence.posts,
        Post(marker, ACCOUNT, SESSION, f"key-{marker}", asked, 100, request_ids={request_id}),
    ]
    _log(evidence, request_id, text)


def _log(evidence: Evidence, request_id: str, text: str) -> None:
    """The log of a turn that ended with this text, and those who read it."""
    log = [
        Event(CURSOR, "attempt.started", None),
        Event(CURSOR + 1, "output.delta", text),
        Event(CURSOR + 2, "request.completed", None),
    ]
    evidence.rows["events"] += [
        {"request_id": request_id, "cursor": event.cursor, "type": event.type, "text": event.text} for event in log
    ]
    snapshots: list[tuple[str, str | None]] = [("queued", None), ("completed", text)]
    evidence.seen = [
        *evidence.seen,
        Seen(request_id, "live", snapshots=snapshots, events=list(log), closed=True),
        Seen(request_id, "left early", events=log[:2]),
    ]


def _attempt(evidence: Evidence, request_id: str, marker: str, number: int, begins: float, *, last: bool) -> None:
    since = begins + number - 1
    evidence.rows["attempts"].append(
        {
            "request_id": request_id,
            "attempt": number,
            "started_at": at(since + 0.1),
            "ended_at": at(since + 0.9),
            "outcome": "succeeded" if last else "server_error",
            "retry_after_seconds": None,
        }
    )
    journal_entry(evidence, request_id, number, debited_at=at(since + 0.1), requests=1, tokens=100)
    journal_entry(evidence, request_id, number, tokens=-70 if last else -100)
    evidence.calls.append(
        {
            "number": len(evidence.calls) + 1,
            "marker": marker,
            "status": 200 if last else 500,
            "outcome": "completed" if last else "error",
            "started": at(since + 0.2).timestamp(),
            "ended": at(since + 0.8).timestamp(),
        }
    )


def journal_entry(evidence: Evidence, request_id: str | None, attempt: int | None, **fields: object) -> None:
    """At the end of the journal, in a transaction of its own."""
    number = len(evidence.rows["journal"]) + 1
    entry = {
        "number": number,
        "transaction": number,
        "domain": None if request_id else "openai",
        "deployment": "main" if request_id else None,
        "request_id": request_id,
        "attempt": attempt,
        "debited_at": None,
        "requests": 0,
        "tokens": 0,
        "closed_until": None,
    }
    evidence.rows["journal"].append(entry | fields)


def test_an_orderly_run_breaks_no_promise() -> None:
    assert violations(orderly()) == []


def _first(evidence: Evidence, table: str) -> dict[str, Any]:
    row = dict(evidence.rows[table][0])
    evidence.rows[table][0] = row
    return row


def _set(table: str, **fields: object) -> Callable[[Evidence], None]:
    return lambda evidence: _first(evidence, table).update(fields)


def _drop(table: str) -> Callable[[Evidence], None]:
    return lambda evidence: evidence.rows[table].__delitem__(0)


def _repeat(table: str, **fields: object) -> Callable[[Evidence], None]:
    return lambda evidence: evidence.rows[table].append({**evidence.rows[table][0], **fields})


def _result(**fields: object) -> Callable[[Evidence], None]:
    def plant(evidence: Evidence) -> None:
        for table, column in (("results", "message"), ("requests", "result")):
            row = _first(evidence, table)
            row[column] = {**row[column], **fields}

    return plant


def _call(place: int, **fields: object) -> Callable[[Evidence], None]:
    return lambda evidence: evidence.calls[place].update(fields)


def _post(**fields: object) -> Callable[[Evidence], None]:
    return lambda evidence: evidence.posts[0].__dict__.update(fields)


def _seen(**fields: object) -> Callable[[Evidence], None]:
    return lambda evidence: evidence.seen[0].__dict__.update(fields)


def _retry_after(evidence: Evidence) -> None:
    """The provider said five seconds; the same request came back after 0.4, the next attempt of all after 0.1."""
    evidence.rows["attempts"][0] = {
        **evidence.rows["attempts"][0],
        "outcome": "rate_limited",
        "retry_after_seconds": 5.0,
    }
    evidence.calls[0]["status"] = 429


def _closed(evidence: Evidence, until: datetime) -> None:
    """A closing that was committed after the first turn, before the attempt of the second."""
    journal_entry(evidence, None, None, closed_until=until)
    journal = evidence.rows["journal"]
    journal.insert(4, journal.pop())
    for number, entry in enumerate(journal, start=1):
        journal[number - 1] = {**entry, "number": number}


def _called_while_closed(evidence: Evidence) -> None:
    """Twenty seconds after the first turn's last answer, says the provider; the second turn comes after nine."""
    row = evidence.rows["attempts"][1]
    evidence.rows["attempts"][1] = {**row, "outcome": "rate_limited", "retry_after_seconds": 20.0}
    evidence.calls[1]["status"] = 429
    _closed(evidence, at(22))


def _debit(place: int, **fields: object) -> Callable[[Evidence], None]:
    """`place` counts debits and settlements: 0, 2 and 4 are debits."""

    def plant(evidence: Evidence) -> None:
        evidence.rows["journal"][place] = {**evidence.rows["journal"][place], **fields}

    return plant


def _calls_repeated(evidence: Evidence) -> None:
    """As by a transport that tries again by itself: one debit, several calls."""
    for _ in range(3):
        evidence.calls.append({**evidence.calls[2], "number": len(evidence.calls) + 1})


def _late(evidence: Evidence) -> None:
    _first(evidence, "results")["stored_at"] = at(130)


def _overlapping(evidence: Evidence) -> None:
    evidence.calls[1]["ended"] = at(15).timestamp()


def _wrong_order(evidence: Evidence) -> None:
    _delivered_late(evidence)
    for number, row in enumerate(evidence.rows["attempts"][:2]):
        later = timedelta(seconds=50)
        evidence.rows["attempts"][number] = {
            **row,
            "started_at": row["started_at"] + later,
            "ended_at": row["ended_at"] + later,
        }


def _delivered_late(evidence: Evidence) -> None:
    for call in evidence.calls[:2]:
        call["started"] += 50
        call["ended"] += 50


PLANTED: dict[str, tuple[str, str, Callable[[Evidence], None]]] = {
    "a key that made two requests": ("doubled", "one key made", _post(request_ids={"req_1", "req_2"})),
    "a post accepted and refused": ("unexpected", "accepted and refused", _post(refusals=[(404, "session_not_found")])),
    "a post nobody answered": ("unexpected", "never learned", _post(request_ids=set())),
    "a request nobody asked for": ("unexpected", "no client knows", _repeat("requests", id="req_9")),
    "an accepted request that is gone": ("lost", "not in the gateway", _drop("requests")),
    "a request that never ended": ("lost", "still queued", _set("requests", state="queued")),
    "a request without a result": ("lost", "results has no ending", _drop("results")),
    "two different endings": ("doubled", "failed in the gateway", _set("requests", state="failed")),
    "two different bodies": ("doubled", "another body", _set("requests", result={"status": "completed"})),
    "a result of no request": ("unexpected", "of no request", _repeat("results", request_id="req_9")),
    "an answer to another question": (
        "unexpected",
        "to 'Turn 1",
        _result(output={"items": [item("assistant", "You said: else")]}),
    ),
    "an ending that came late": ("late", "after its deadline", _late),
    "a second charge": ("charged_twice", "2 entries", _repeat("ledger")),
    "a charge that is too high": ("charged_twice", "charged 31", _set("ledger", tokens=31)),
    "a charge that is missing": ("unexpected", "charged 0 tokens", _drop("ledger")),
    "a charge without a request": ("charged_twice", "due are 0", _repeat("ledger", request_id="req_9")),
    "a failed request that is charged": ("charged_twice", "due are 0", _result(status="failed")),
    "a hold that is still held": ("unexpected", "its hold is held", _set("holds", state="held")),
    "a hold with another sum": ("unexpected", "its hold says 29", _set("holds", charged_tokens=29)),
    "an ending that billing missed": ("unexpected", "never heard", _drop("holds")),
    "an account beyond its grant": ("unexpected", "60 + 0 > 50", _set("credits", granted=50)),
    "tokens that stay held": ("unexpected", "7 tokens are held", _set("credits", held=7)),
    "an account that does not add up": ("unexpected", "settled are 61", _set("credits", settled=61)),
    "a call for nobody": ("unexpected", "for no accepted request", _call(0, marker="test-9")),
    "a call without a decision": ("unexpected", "without a decision", _drop("decisions")),
    "a call that was denied": ("unexpected", "without a decision", _set("decisions", decision="DENY")),
    "a call before its decision": ("unexpected", "before the decision", _set("decisions", decided_at=at(0.5))),
    "a call without an attempt": ("unexpected", "attempts were written", _drop("attempts")),
    "a call before its attempt": ("unexpected", "attempts were written", _set("attempts", started_at=at(5))),
    "a Retry-After undercut by the request": ("unexpected", "after a 429", _retry_after),
    "a Retry-After that closes nothing": ("unexpected", "nothing is closed", _retry_after),
    "a Retry-After undercut by another": ("unexpected", "before the Retry-After of", _called_while_closed),
    "an attempt in a closed domain": (
        "unexpected",
        "openai is closed until",
        lambda evidence: _closed(evidence, at(22)),
    ),
    "debits that are out of order": ("unexpected", "after a debit as of", _debit(2, debited_at=at(0.05))),
    "too many calls in a window": ("unexpected", "debits has 0.500000 requests too many", _debit(2, requests=2)),
    "too many tokens in a window": ("unexpected", "tokens too many", _debit(2, tokens=500)),
    "too many calls in the provider's log": ("unexpected", "log has", _calls_repeated),
    "two calls of a session at once": ("unexpected", "overlaps", _overlapping),
    "a later turn that ran first": ("unexpected", "a later turn", _wrong_order),
    "a prompt without the turn before": ("unexpected", "its prompt has", _call(2, messages=[])),
    "a client that met what it should not": (
        "unexpected",
        "shown",
        lambda evidence: setattr(evidence, "problems", ["was shown a secret"]),
    ),
    "an end that changed": ("doubled", "saw", _seen(snapshots=[("failed", None), ("completed", "x")])),
    "a log with a hole": ("unexpected", "saw", lambda evidence: evidence.seen[0].events.__delitem__(1)),
    "an entry seen twice": (
        "unexpected",
        "given cursors",
        lambda evidence: evidence.seen[0].events.insert(1, evidence.seen[0].events[1]),
    ),
    "text that is not the output": (
        "unexpected",
        "assembled",
        _result(output={"items": [item("assistant", "You said: Turn 1 of [[test-1]]")]}),
    ),
    "a log without an end": ("unexpected", "no request.completed", _seen(events=[])),
    "a parked message": (
        "unexpected",
        "parked by billing",
        lambda evidence: evidence.parked.append({"service": "billing", "ce_id": "x", "reason": "odd"}),
    ),
    "a publish of the gateway that is owed": ("unexpected", "gateway owes", _set("requests", owed=1)),
    "an ending that is owed": ("unexpected", "owes its session.ended", _set("tasks", ended_published_at=None)),
    "an eligibility that is owed": ("unexpected", "billing owes", _set("eligibilities", published_sequence=2)),
    "a task that goes on": ("unexpected", "its task is running", _set("tasks", state="running")),
    "an attempt without an end": ("unexpected", "has no end", _set("attempts", ended_at=None)),
    "a session that miscounts": ("unexpected", "counts 1 open", _set("sessions", open_requests=1)),
    "a request that is overdue": (
        "unexpected",
        "is 1",
        lambda evidence: setattr(evidence, "requests_overdue", 1.0),
    ),
    "an eligibility that got lost": ("unexpected", "the gateway has eligibility 2", _set("copies", sequence=2)),
    "a queue that nobody reads": (
        "unexpected",
        "do not read it",
        lambda evidence: setattr(evidence, "consumers_missing", {"billing.results": 1}),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_broken_promise_is_found(name: str) -> None:
    kind, words, plant = PLANTED[name]
    evidence = deepcopy(orderly())
    plant(evidence)
    found = violations(evidence)
    assert any(violation.kind == kind and words in violation.text for violation in found), found


def test_every_check_has_found_something() -> None:
    """A check that no planted fault can trip would be a check that cannot fail."""
    from tests.support.faults.invariants import CHECKS

    silent = set(CHECKS)
    for _, _, plant in PLANTED.values():
        evidence = deepcopy(orderly())
        plant(evidence)
        silent -= {check for check in silent if list(check(evidence))}
    assert silent == set()


def test_an_outage_is_not_counted_as_lateness() -> None:
    evidence = orderly()
    _late(evidence)
    evidence.outage_seconds = lambda since, until: 15.0
    assert [violation.kind for violation in violations(evidence)] == []


@pytest.mark.parametrize(("outage_seconds", "found"), [(0, 1), (20, 1), (21, 0)])
def test_a_hold_expires_before_its_end_is_heard_only_in_an_outage_longer_than_the_grace(
    outage_seconds: float, found: int
) -> None:
    evidence = orderly()
    _first(evidence, "results")["message"] = {"status": "failed", "output": None, "usage": None}
    _first(evidence, "holds").update(state="expired", charged_tokens=0)
    evidence.outage_seconds = lambda since, until: outage_seconds
    assert len([*each_hold_ended_once(evidence)]) == found


def test_what_a_frozen_wire_delivers_after_its_attempts_were_given_up_says_nothing_of_the_order() -> None:
    evidence = orderly()
    _delivered_late(evidence)
    assert violations(evidence) == []


def test_a_lost_workers_call_may_overlap() -> None:
    evidence = orderly()
    _overlapping(evidence)
    _first(evidence, "tasks")["workers_lost"] = 1
    assert violations(evidence) == []
