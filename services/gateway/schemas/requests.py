"""Requests as their owner sees them: snapshots, summaries, the log, the timeline."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from services.gateway.request_state import State
from services.gateway.schemas.base import Incoming, ListQuery, Outgoing
from shared.contracts.content import Failure, FinishReason, Item, WaitingOn


class RequestListQuery(ListQuery):
    """The same, of requests in one state."""

    status: State | None = None


class EventsQuery(Incoming):
    """The events after a cursor; waits for the next one where there is none yet."""

    after: int | None = Field(default=None, ge=0, le=2**63 - 1)
    wait: int = Field(default=0, ge=0, le=60)
    limit: int = Field(default=500, ge=1, le=1000)


class OutputView(Outgoing):
    """What a request produced. `text` is the concatenation of all assistant text in `items`."""

    text: str
    items: tuple[Item, ...]
    finish_reason: FinishReason


class QueuePlace(Outgoing):
    """How many requests of the session come before this one."""

    position: int


class UsageView(Outgoing):
    """Tokens as the provider counted them."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_input_tokens: int
    estimated: bool


class ChargeView(Outgoing):
    """What the request cost its account, once billing has settled it."""

    state: Literal["settled", "released"]
    tokens: int
    reason: str
    at: datetime


class RequestSummary(Outgoing):
    """A request in a list."""

    id: str
    session_id: str
    seq: int
    status: State
    waiting_on: WaitingOn | None
    model: str
    metadata: dict[str, str]
    cancel_requested_at: datetime | None
    created_at: datetime
    deadline_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class RequestView(RequestSummary):
    """A request with its result. Events after `cursor` are not contained in it."""

    queue: QueuePlace | None
    output: OutputView | None
    error: Failure | None
    usage: UsageView | None
    charge: ChargeView | None
    cursor: int
    poll_after_ms: int | None


class EventView(Outgoing):
    """One entry of a request's log."""

    cursor: int
    type: str
    at: datetime
    data: dict[str, Any]


class EventPage(Outgoing):
    """Events in order. Ask again after `next`; `closed` says that nothing will follow."""

    events: tuple[EventView, ...]
    next: int
    closed: bool


class TimelineEntry(Outgoing):
    """One thing that happened to a request, and who says so."""

    at: datetime
    service: Literal["gateway", "orchestrator", "results", "billing"]
    type: str
    data: dict[str, Any]


class Timeline(Outgoing):
    """Everything that happened to a request, causes before effects. `missing` names services whose
    records are not in it: who did not answer, and the orchestrator while the request runs, for it tells at the end."""

    entries: tuple[TimelineEntry, ...]
    missing: tuple[str, ...]
