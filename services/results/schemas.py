"""Bodies of the internal HTTP API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from services.results.event_log import EventType
from shared.contracts.content import Item, Outcome
from shared.contracts.message import Contract


class LogEntry(Contract):
    """One entry of a log as readers see it."""

    cursor: int
    type: EventType
    at: datetime
    data: dict[str, Any]


class EventPage(Contract):
    """GET /internal/requests/{request_id}/events"""

    events: tuple[LogEntry, ...] = ()
    next: int
    """The cursor to read on from."""
    closed: bool = False
    """The log has ended and nothing comes after `next`."""


class LogsLookup(Contract):
    """POST /internal/logs/lookup: the cursor up to which each request's log is known."""

    after: dict[str, Annotated[int, Field(ge=0, le=2**63 - 1)]] = Field(min_length=1, max_length=500)


class LogsLookupReply(Contract):
    """Those whose log has come further."""

    request_ids: tuple[str, ...]


class Turn(Contract):
    """Both sides of one turn that has an answer."""

    request_id: str
    seq: int
    status: Outcome
    input: tuple[Item, ...]
    output_items: tuple[Item, ...]
    ended_at: datetime


class Transcript(Contract):
    """GET /internal/sessions/{session_id}/transcript"""

    turns: tuple[Turn, ...]


class Lookup(Contract):
    """POST /internal/results/lookup"""

    request_ids: tuple[str, ...] = Field(min_length=1, max_length=200)


class LookupReply(Contract):
    """The `result.*` bodies of those that have ended, each with its `type`."""

    results: tuple[dict[str, Any], ...]
