"""What the store gives and takes: rows as frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from services.gateway.api_keys import Scope
from services.gateway.request_state import State
from shared.contracts.billing import Charge, Eligibility
from shared.contracts.content import WaitingOn
from shared.contracts.results import ResultEnded


@dataclass(frozen=True)
class Caller:
    """Who calls, as one look-up of a key tells, and billing's last word about them."""

    key_id: str
    scope: Scope
    account_id: str
    """Empty for an administrator."""
    eligibility: Eligibility | None


@dataclass(frozen=True)
class Account:
    id: str
    name: str
    created_at: datetime


@dataclass(frozen=True)
class Key:
    id: str
    account_id: str | None
    scope: Scope
    name: str | None
    last_four: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True)
class NewSession:
    id: str
    account_id: str
    instructions: str | None
    model: str
    metadata_json: str
    idempotency_key: str | None
    fingerprint: bytes | None


@dataclass(frozen=True)
class Session:
    id: str
    instructions: str | None
    model: str
    metadata: dict[str, str]
    is_running: bool
    open_requests: int
    created_at: datetime
    fingerprint: bytes | None


@dataclass(frozen=True)
class Accept:
    """One request on its way in. Its id exists before the first try."""

    request_id: str
    session_id: str
    account_id: str
    model: str | None
    settings_json: str
    input_json: str
    metadata_json: str
    idempotency_key: str | None
    fingerprint: bytes
    deadline_seconds: int
    traceparent: str | None = None


@dataclass(frozen=True)
class Accepted:
    """Durable. `ahead` counts the requests of the session that come before it."""

    turn: Turn
    has_turn: bool
    ahead: int


@dataclass(frozen=True)
class KnownKey:
    """The idempotency key belongs to this request."""

    request_id: str
    fingerprint: bytes


@dataclass(frozen=True)
class SessionMissing:
    """Unknown, deleted, or somebody else's."""


@dataclass(frozen=True)
class QueueFull:
    """The session has as many open requests as it may have."""


@dataclass(frozen=True)
class Turn:
    """Everything about a request that a command to another service says."""

    request_id: str
    account_id: str
    session_id: str
    seq: int
    input_json: str
    settings_json: str
    model: str
    instructions: str | None
    accepted_at: datetime
    deadline_at: datetime
    traceparent: str | None = None
    """Of its accept, while traces are taken: whatever is done for the request belongs under it."""


@dataclass(frozen=True)
class Abandoned:
    """A request whose end is proposed from here."""

    turn: Turn
    code: str
    """Of the failure: `cancelled`, `deadline_exceeded` or `input_too_large`."""
    at: datetime


@dataclass(frozen=True)
class Cancelled:
    """A cancel just recorded: told to the orchestrator where the request was handed over, abandoned where not."""

    turn: Turn
    abandoned: Abandoned | None


@dataclass(frozen=True)
class Due:
    """An open request that nothing was heard of for too long, or whose deadline has passed."""

    turn: Turn
    was_dispatched: bool
    is_expired: bool
    """Past the deadline without the turn, or past the deadline and the grace with it."""
    cancel_requested: bool
    abandoned: Abandoned | None


@dataclass(frozen=True)
class Ended:
    """What a batch of endings changed, and who has the turn now."""

    ended_ids: frozenset[str]
    known_ids: frozenset[str]
    requests: tuple[Request, ...]
    """Of those that ended, the ones that were written and read by one statement."""
    dispatched: tuple[Turn, ...]


@dataclass(frozen=True)
class Progress:
    """The newest hint about a request in a batch of hints."""

    request_id: str
    attempt: int
    waiting_on: WaitingOn | None
    at: datetime


@dataclass(frozen=True)
class Request:
    """A request as its owner sees it."""

    id: str
    account_id: str
    session_id: str
    seq: int
    state: State
    model: str
    metadata: dict[str, str]
    accepted_at: datetime
    deadline_at: datetime
    dispatched_at: datetime | None
    waiting_on: WaitingOn | None
    started_at: datetime | None
    cancel_requested_at: datetime | None
    abandoned_at: datetime | None
    abandon_code: str | None
    ended_at: datetime | None
    """When the work ended, by the clock of who did it."""
    end_heard_at: datetime | None = None
    """When this row learned of the end that results stored."""
    result: ResultEnded | None = None
    charge: Charge | None = None
    ahead: int | None = None
    """How many come before it in its session, while it waits for the turn."""
