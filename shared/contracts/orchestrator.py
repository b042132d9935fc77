"""What the orchestrator says: how far a turn is (best effort), and how it ended (owed)."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from shared.contracts.content import Failure, Item, Outcome, Output, Usage, WaitingOn
from shared.contracts.message import Contract, Message

EVENTS_PER_ATTEMPT_MAX = 2**20
"""cursor = attempt * EVENTS_PER_ATTEMPT_MAX + index"""

PROGRESS_INDEX_MAX = EVENTS_PER_ATTEMPT_MAX - 64
"""The room above it belongs to results: fillers, supersession, the closing event."""


class _OfOrchestrator(Message):
    source: ClassVar[str] = "/parley/orchestrator"

    request_id: str
    account_id: str
    session_id: str
    seq: int

    @property
    def subject(self) -> str:
        return self.request_id


class ProgressEvent(Contract):
    """One entry of an attempt's log. `index` counts from 1 within its attempt; 0 is written by results."""

    index: int = Field(ge=1, le=PROGRESS_INDEX_MAX)
    type: Literal["output.delta", "refusal.delta"]
    at: datetime
    text: str


class SessionProgressed(_OfOrchestrator):
    """A running turn moved on. Without events it announces the attempt, or what the turn waits for."""

    type: ClassVar[str] = "session.progressed"
    queues: ClassVar[tuple[str, ...]] = ()
    best_effort: ClassVar[bool] = True

    attempt: int = Field(ge=0, le=1000)
    """0 before the first attempt."""
    epoch: str
    """Random for each claim of the task: of two writers under one attempt number only the first is heard."""
    at: datetime
    waiting_on: WaitingOn | None = None
    waiting_until: datetime | None = None
    events: tuple[ProgressEvent, ...] = ()

    @property
    def id(self) -> str:
        first = self.events[0].index if self.events else 0
        return f"{self.type}:{self.subject}:{self.attempt}:{self.epoch}:{first}:{self.waiting_on or ''}"


class AttemptRecord(Contract):
    """One provider call in the ledger of a request."""

    attempt: int
    deployment: str
    provider: str
    upstream_model: str
    started_at: datetime
    ended_at: datetime
    outcome: str
    """`succeeded`, or what went wrong: `rate_limited`, `server_error`, `stalled`, `cut`, `malformed`, ..."""
    http_status: int | None = None
    error_code: str | None = None
    retry_after_seconds: float | None = None
    first_token_seconds: float | None = None
    usage: Usage | None = None
    cost_microcents: int = 0
    """What the call cost us at the deployment's prices, in millionths of a cent."""


class WaitRecord(Contract):
    """One wait in the ledger of a request: until when the task stood still, and for what."""

    reason: WaitingOn
    after_attempt: int
    since: datetime
    until: datetime


class SessionEnded(_OfOrchestrator):
    """The proposed ending of a turn that the orchestrator owned; carries everything that later readers need."""

    type: ClassVar[str] = "session.ended"
    queues: ClassVar[tuple[str, ...]] = ("results.endings",)

    status: Outcome
    output: Output | None = None
    error: Failure | None = None
    usage: Usage | None = None
    """Of the attempt that gave the output; what an aborted call used up where the user cancelled it."""
    input: tuple[Item, ...]
    """Where the turn is part of the transcript: completed and incomplete ones are."""
    model: str
    accepted_at: datetime
    started_at: datetime | None = None
    """When the first provider call started; None where none did."""
    ended_at: datetime
    final_attempt: int = 0
    """The attempt that the output is from, 0 where there was none."""
    attempts: tuple[AttemptRecord, ...] = ()
    waits: tuple[WaitRecord, ...] = ()
