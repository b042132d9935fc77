"""What the gateway says: run this, stop this, this one never ran."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from shared.contracts.content import CallSettings, Failure, Item
from shared.contracts.message import Message


class _OfGateway(Message):
    source: ClassVar[str] = "/parley/gateway"

    request_id: str
    account_id: str
    session_id: str
    seq: int
    """The place of the request in its session, from 1."""

    @property
    def subject(self) -> str:
        return self.request_id


class SessionRequested(_OfGateway):
    """Run this turn. Its arrival ends any unfinished earlier task of the same session."""

    type: ClassVar[str] = "session.requested"
    queues: ClassVar[tuple[str, ...]] = ("orchestrator.requests",)

    input: tuple[Item, ...]
    settings: CallSettings
    accepted_at: datetime
    deadline_at: datetime
    """By this instant the request must have ended; past it plus the grace the command never runs."""
    grace_seconds: float


class SessionCancelRequested(_OfGateway):
    """The user asked to stop a turn that was already handed over."""

    type: ClassVar[str] = "session.cancel_requested"
    queues: ClassVar[tuple[str, ...]] = ("orchestrator.cancels",)


class SessionAbandoned(_OfGateway):
    """A proposed ending for a request that never ran (cancelled or expired before dispatch), or that is overdue."""

    type: ClassVar[str] = "session.abandoned"
    queues: ClassVar[tuple[str, ...]] = ("results.endings",)

    status: Literal["failed", "cancelled"]
    error: Failure
    accepted_at: datetime
    abandoned_at: datetime


class RequestsMoved(Message):
    """A hint between gateway replicas: these requests changed, wake whoever waits for them."""

    type: ClassVar[str] = "requests.moved"
    source: ClassVar[str] = "/parley/gateway"
    queues: ClassVar[tuple[str, ...]] = ()
    best_effort: ClassVar[bool] = True

    request_ids: tuple[str, ...]
    still_open: bool = False
    """None of them has ended: who waits for the end alone need not look."""

    @property
    def subject(self) -> str:
        return "requests"
