"""What is written to the store: a new task, the start and end of an attempt, and what becomes of a running task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.orchestrator.task import State, Wait
from shared.contracts.gateway import SessionCancelRequested, SessionRequested
from shared.contracts.orchestrator import AttemptRecord, SessionEnded, WaitRecord


@dataclass(frozen=True, slots=True)
class AttemptStart:
    """A provider call that is about to be made; its row allocates its number."""

    request_id: str
    fence: int
    attempt: int
    deployment: str
    provider: str
    upstream_model: str
    tokens: int
    decision_id: str | None
    started_at: datetime


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How a provider call ended, and what that means for the bucket it drew on."""

    request_id: str
    fence: int
    record: AttemptRecord
    domain: str
    tokens_back: int
    """Reserved less used; negative where the call used more than was reserved."""
    closed_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewTask:
    """A row to insert: with its first attempt, standing still, or finished at once."""

    source: SessionRequested | SessionCancelRequested
    state: State
    deadline_at: datetime
    tokens: int = 0
    decision_id: str | None = None
    worker_id: str | None = None
    start: AttemptStart | None = None
    wait: Wait | None = None
    ending: SessionEnded | None = None

    @property
    def request_id(self) -> str:
        return self.source.request_id

    @property
    def command_json(self) -> str | None:
        """Kept until the end only: the ending carries the input."""
        return None if self.state == "finished" else self.source.model_dump_json()


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What becomes of a running task, under its fence: it finishes, stands still, or is handed back."""

    request_id: str
    fence: int
    state: State
    decision_id: str | None = None
    tokens: int = 0
    end: AttemptEnd | None = None
    wait: Wait | None = None
    ending: SessionEnded | None = None
    pauses: tuple[WaitRecord, ...] = ()
    """Of this claim, for the ledger of a task that goes on; a finished one carries them in its ending."""
