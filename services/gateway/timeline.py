"""The timeline of a request: every service's records of it, put together on read, causes before effects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from datetime import datetime
from typing import Any, Final, TypeVar

from services.gateway.peers import Billing, Record, Results
from services.gateway.records import Request
from services.gateway.request_state import is_ended
from services.gateway.schemas import Timeline, TimelineEntry
from shared.contracts.orchestrator import AttemptRecord, WaitRecord
from shared.contracts.results import LateEnding, Ledger
from shared.errors import Transient
from shared.http_client import PeerRefused
from shared.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")

# Each service stamps its records by its own database's clock: what must have come first is put first, and only
# within one stage does the time decide.
_ACCEPTED, _DISPATCHED, _DECIDED, _WORK, _STORED, _AFTER = range(6)
_STAGE_BY_TYPE: Final = {
    "request.accepted": _ACCEPTED,
    "request.dispatched": _DISPATCHED,
    "decision.made": _DECIDED,
    "hold.created": _DECIDED,
    "result.stored": _STORED,
    "request.ended": _AFTER,
    "proposal.late": _AFTER,
    "hold.settled": _AFTER,
    "hold.released": _AFTER,
    "hold.expired": _AFTER,
    "charge.recorded": _AFTER,
}
_STAGE_BY_WAIT: Final = {"session_turn": _ACCEPTED, "eligibility": _DECIDED}


class TimelineReader:
    def __init__(self, billing: Billing, results: Results) -> None:
        self._billing = billing
        self._results = results

    async def read(self, request: Request) -> Timeline:
        """A service that does not answer is named, and the rest is shown."""
        ledger, records = await asyncio.gather(
            _answer_of("results", self._results.ledger(request.id, request.account_id)),
            _answer_of("billing", self._billing.records(request.id, request.account_id)),
        )
        entries = [
            *_of_gateway(request),
            *(_of_ledger(ledger) if ledger is not None else ()),
            *(_of_billing(record) for record in records or ()),
        ]
        missing = [name for name, answer in (("results", ledger), ("billing", records)) if answer is None]
        if request.dispatched_at is not None and not is_ended(request.state):
            missing.append("orchestrator")  # its attempts and waits come with the ending
        return Timeline(entries=tuple(sorted(entries, key=_order)), missing=tuple(missing))


async def _answer_of(peer: str, call: Awaitable[T]) -> T | None:
    try:
        return await call
    except (Transient, PeerRefused) as error:
        log.warning("timeline.incomplete", peer=peer, error=str(error))
        return None


def _order(entry: TimelineEntry) -> tuple[int, datetime]:
    if entry.type == "wait.started" and entry.data["reason"] in _STAGE_BY_WAIT:
        return _STAGE_BY_WAIT[entry.data["reason"]], entry.at
    return _STAGE_BY_TYPE.get(entry.type, _WORK), entry.at


def _of_gateway(request: Request) -> Iterable[TimelineEntry]:
    deadline = request.deadline_at.isoformat()
    yield _entry("gateway", request.accepted_at, "request.accepted", seq=request.seq, deadline_at=deadline)
    if request.dispatched_at != request.accepted_at:
        ended_at = request.dispatched_at or request.abandoned_at
        until = ended_at.isoformat() if ended_at else None
        yield _entry("gateway", request.accepted_at, "wait.started", reason="session_turn", until=until)
    if request.dispatched_at:
        yield _entry("gateway", request.dispatched_at, "request.dispatched")
    if request.cancel_requested_at:
        yield _entry("gateway", request.cancel_requested_at, "request.cancel_requested")
    if request.abandoned_at:
        yield _entry("gateway", request.abandoned_at, "request.abandoned", reason=request.abandon_code)
    if request.ended_at:
        code = request.result.error.code if request.result and request.result.error else None
        # Results decides how a request ended, so here it has ended once that is heard; the work ended before.
        heard_at = request.end_heard_at or request.ended_at
        yield _entry("gateway", heard_at, "request.ended", status=request.state, reason=code)


def _of_ledger(ledger: Ledger) -> Iterable[TimelineEntry]:
    for attempt in ledger.attempts:
        yield from _of_attempt(attempt)
    for wait in ledger.waits:
        yield _of_wait(wait)
    if ledger.stored_at:
        yield _entry("results", ledger.stored_at, "result.stored", status=ledger.status, ended_by=ledger.ended_by)
    for late in ledger.late:
        yield _of_late(late)


def _of_attempt(attempt: AttemptRecord) -> Iterable[TimelineEntry]:
    """How a call went; upstream model and our cost are the house's business."""
    where = {"attempt": attempt.attempt, "deployment": attempt.deployment, "provider": attempt.provider}
    yield _entry("orchestrator", attempt.started_at, "attempt.started", **where)
    yield _entry(
        "orchestrator",
        attempt.ended_at,
        "attempt.ended",
        **where,
        outcome=attempt.outcome,
        http_status=attempt.http_status,
        error_code=attempt.error_code,
        retry_after_seconds=attempt.retry_after_seconds,
        first_token_seconds=attempt.first_token_seconds,
        usage=attempt.usage.model_dump() if attempt.usage else None,
    )


def _of_wait(wait: WaitRecord) -> TimelineEntry:
    until = wait.until.isoformat()
    return _entry(
        "orchestrator", wait.since, "wait.started", reason=wait.reason, until=until, after_attempt=wait.after_attempt
    )


def _of_late(late: LateEnding) -> TimelineEntry:
    code = late.error.code if late.error else None
    return _entry(
        "results", late.received_at, "proposal.late", status=late.status, proposed_by=late.proposed_by, reason=code
    )


def _of_billing(record: Record) -> TimelineEntry:
    return TimelineEntry(at=record.at, service="billing", type=record.type, data=record.data)


def _entry(service: str, at: datetime, entry_type: str, **data: Any) -> TimelineEntry:
    said = {name: value for name, value in data.items() if value is not None}
    return TimelineEntry.model_validate({"at": at, "service": service, "type": entry_type, "data": said})
