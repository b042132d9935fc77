"""Bodies of billing's internal HTTP API that are no contract of `shared`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from shared.contracts.billing import Eligibility
from shared.contracts.message import Contract

Url = Annotated[str, Field(min_length=8, max_length=2000, pattern=r"^https?://")]


class EligibilityAnswer(Eligibility):
    """A decision made now, and the number of the decision in force."""

    account_id: str
    sequence: int
    decided_at: datetime


class CheckoutAsked(Contract):
    """Buy a plan, by its name in PLANS_FILE or by one of its Stripe prices; without either the only one for sale."""

    plan: str | None = Field(default=None, max_length=128)
    price: str | None = Field(default=None, max_length=128)
    success_url: Url
    cancel_url: Url


class PortalAsked(Contract):
    """Where Stripe's portal sends the user back to."""

    return_url: Url


class RecordEntry(Contract):
    """One entry of a request's timeline."""

    at: datetime
    type: str
    data: dict[str, Any]
