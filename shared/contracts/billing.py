"""What billing says: an account's eligibility changed; and the bodies of its internal HTTP API."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from shared.contracts.message import Contract, Message

Verdict = Literal["ALLOW", "ALLOW_GRACE", "DENY", "INDETERMINATE"]
ActionHint = Literal[
    "subscribe", "update_payment_method", "complete_payment", "resume", "buy_credits", "upgrade", "contact_support"
]


class Eligibility(Contract):
    """A decision about an account, and the earliest instant at which it can change without a new event."""

    decision: Verdict
    reasons: tuple[str, ...]
    """The first one decided."""
    plan: str | None = None
    models: tuple[str, ...] | None = None
    """Public model names the plan permits; None permits all."""
    valid_until: datetime | None = None
    remaining: int | None = None
    """Tokens left in the period; None is unlimited or not known."""
    action_hint: ActionHint | None = None


class EligibilityChanged(Message):
    """A new decision about an account. Only a greater `sequence` replaces what a reader has."""

    type: ClassVar[str] = "eligibility.changed"
    source: ClassVar[str] = "/parley/billing"
    queues: ClassVar[tuple[str, ...]] = ("gateway.eligibility",)

    account_id: str
    sequence: int
    eligibility: Eligibility
    decided_at: datetime

    @property
    def subject(self) -> str:
        return self.account_id

    @property
    def id(self) -> str:
        return f"{self.type}:{self.subject}:{self.sequence}"


class HoldRequest(Contract):
    """Ask for the right to run one request and reserve its estimated tokens."""

    request_id: str = Field(max_length=64)
    account_id: str = Field(max_length=64)
    model: str = Field(max_length=128)
    tokens: int = Field(ge=0, le=100_000_000)
    expires_at: datetime
    """At least the deadline plus twice the grace."""


class HoldRequests(Contract):
    """POST /internal/holds: one call for a batch."""

    holds: tuple[HoldRequest, ...] = Field(min_length=1, max_length=256)


class HoldReply(Contract):
    """The recorded decision for one request: the same for every repeat of the same question."""

    request_id: str
    decision_id: str
    eligibility: Eligibility
    held_tokens: int = 0


class HoldReplies(Contract):
    """In the order of the questions."""

    holds: tuple[HoldReply, ...]


class Charge(Contract):
    """What a request cost its account, once billing has settled or released its hold."""

    request_id: str
    state: Literal["settled", "released"]
    tokens: int
    reason: str
    at: datetime


class UsageReport(Contract):
    """What an account used in its present period."""

    plan: str | None
    period_start: datetime | None
    period_end: datetime | None
    granted_tokens: int | None
    settled_tokens: int
    held_tokens: int
    requests_charged: int
