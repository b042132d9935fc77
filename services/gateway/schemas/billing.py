"""What billing says and sells, as an account sees it."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from services.gateway.schemas.base import Incoming, Outgoing, Url
from shared.contracts.billing import ActionHint, Verdict


class CreateCheckout(Incoming):
    """Buy a plan, by its name or by one of its prices; without either the only plan for sale."""

    plan: str | None = Field(default=None, min_length=1, max_length=128)
    price: str | None = Field(default=None, min_length=1, max_length=128)
    success_url: Url
    cancel_url: Url


class CreatePortal(Incoming):
    """Manage what was bought."""

    return_url: Url


class EligibilityView(Outgoing):
    """Whether the account's requests may run now, and why."""

    decision: Verdict
    reasons: tuple[str, ...]
    plan: str | None
    models: tuple[str, ...] | None
    valid_until: datetime | None
    remaining: int | None
    action_hint: ActionHint | None


class Redirect(Outgoing):
    """Where to send the user's browser: a page of Stripe's."""

    url: str
