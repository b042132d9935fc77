"""What results says: the log of a request grew (best effort), a request ended (owed, exactly one of five); and the
ledger that its internal HTTP API gives."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from shared.contracts.content import Failure, Outcome, Output, Usage, WaitingOn
from shared.contracts.message import Contract, Message
from shared.contracts.orchestrator import AttemptRecord, WaitRecord

ProposedBy = Literal["session.ended", "session.abandoned"]


class _OfResults(Message):
    source: ClassVar[str] = "/parley/results"

    request_id: str
    account_id: str
    session_id: str
    seq: int
    cursor: int

    @property
    def subject(self) -> str:
        return self.request_id


class ResultUpdated(_OfResults):
    """New entries can be read after an older cursor, or the request waits for something else now."""

    type: ClassVar[str] = "result.updated"
    queues: ClassVar[tuple[str, ...]] = ()
    best_effort: ClassVar[bool] = True

    at: datetime
    attempt: int
    waiting_on: WaitingOn | None = None

    @property
    def id(self) -> str:
        return f"{self.type}:{self.subject}:{self.cursor}:{self.waiting_on or ''}"


class ResultEnded(_OfResults):
    """The one ending of a request, as stored. Its five types differ in name only."""

    queues: ClassVar[tuple[str, ...]] = ("gateway.results", "billing.results")

    status: Outcome
    output: Output | None = None
    error: Failure | None = None
    usage: Usage | None = None
    model: str | None = None
    provider_called: bool
    started_at: datetime | None = None
    ended_at: datetime
    ended_by: ProposedBy


class ResultCompleted(ResultEnded):
    """The model answered (its own refusal included)."""

    type: ClassVar[str] = "result.completed"


class ResultIncomplete(ResultEnded):
    """An answer that was cut by a length limit or a content filter; the reason is in `error`."""

    type: ClassVar[str] = "result.incomplete"


class ResultFailed(ResultEnded):
    """No answer: the reason is in `error`."""

    type: ClassVar[str] = "result.failed"


class ResultRefused(ResultEnded):
    """Billing did not permit the request; nothing was called."""

    type: ClassVar[str] = "result.refused"


class ResultCancelled(ResultEnded):
    """The user cancelled it."""

    type: ClassVar[str] = "result.cancelled"


RESULT_BY_STATUS: dict[Outcome, type[ResultEnded]] = {
    "completed": ResultCompleted,
    "incomplete": ResultIncomplete,
    "failed": ResultFailed,
    "refused": ResultRefused,
    "cancelled": ResultCancelled,
}


class LateEnding(Contract):
    """A proposed ending that came after the end, with what it cost; never charged."""

    proposed_by: ProposedBy
    status: Outcome
    error: Failure | None = None
    usage: Usage | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    ended_at: datetime
    received_at: datetime


class Ledger(Contract):
    """GET /internal/requests/{request_id}/ledger: what was done for a request that ended; empty before."""

    status: Outcome | None = None
    attempts: tuple[AttemptRecord, ...] = ()
    waits: tuple[WaitRecord, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None
    stored_at: datetime | None = None
    ended_by: ProposedBy | None = None
    late: tuple[LateEnding, ...] = ()
