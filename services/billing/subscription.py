"""Facts about a subscription, read the same way from every shape Stripe's API has had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

KNOWN_STATUSES: Final = frozenset(
    {"incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid", "paused"}
)
TERMINAL_STATUSES: Final = frozenset({"canceled", "incomplete_expired"})

_REFRESH_AFTER: Final = timedelta(hours=24)


@dataclass(frozen=True)
class PriceLine:
    """One item of a subscription and the period it is paid for."""

    price_id: str
    period_start: datetime | None
    period_end: datetime | None


@dataclass(frozen=True)
class SubscriptionFact:
    """What a decision needs to know about one subscription. What Stripe did not say is None, never a default."""

    subscription_id: str
    customer_id: str
    status: str
    livemode: bool | None
    created: datetime | None
    lines: tuple[PriceLine, ...]
    fetched_at: datetime
    trial_end: datetime | None = None
    cancel_at: datetime | None = None
    cancel_at_period_end: bool = False
    collection_pause: str | None = None
    """How invoices are treated while collection is paused: keep_as_draft, mark_uncollectible or void."""
    collection_resumes_at: datetime | None = None
    pause_reason: str | None = None
    past_due_since: datetime | None = None
    status_since: datetime | None = None
    """When we first saw this status; only read for a status nobody knows."""
    last_known_status: str | None = None
    """The status before the one nobody knows."""
    customer_deleted: bool = False
    latest_invoice_id: str | None = None
    """Of the present period."""

    @property
    def period_end(self) -> datetime | None:
        return min((line.period_end for line in self.lines if line.period_end is not None), default=None)


class NotASubscription(ValueError):
    """The object has no id, customer or status: it is nothing we can keep a fact about."""


def read_subscription(body: Mapping[str, Any], *, fetched_at: datetime) -> SubscriptionFact:
    """The facts in a subscription object of Stripe's API, as of `fetched_at`."""
    subscription_id, customer_id, status = _text(body, "id"), _id_of(body.get("customer")), _text(body, "status")
    if subscription_id is None or customer_id is None or status is None:
        raise NotASubscription("a subscription needs an id, a customer and a status")
    pause = _mapping(body, "pause_collection")
    paused = _mapping(_mapping(_mapping(body, "status_details"), "paused"), "subscription")
    livemode = body.get("livemode")
    return SubscriptionFact(
        subscription_id=subscription_id,
        customer_id=customer_id,
        status=status,
        livemode=livemode if isinstance(livemode, bool) else None,
        created=_instant(body, "created"),
        lines=_lines(body),
        fetched_at=fetched_at,
        trial_end=_instant(body, "trial_end"),
        cancel_at=_instant(body, "cancel_at"),
        cancel_at_period_end=body.get("cancel_at_period_end") is True,
        collection_pause=_text(pause, "behavior"),
        collection_resumes_at=_instant(pause, "resumes_at"),
        pause_reason=_text(paused, "type") if status == "paused" else None,
        past_due_since=_past_due_since(body) if status == "past_due" else None,
        status_since=None if status in KNOWN_STATUSES else fetched_at,
        latest_invoice_id=_id_of(body.get("latest_invoice")),
    )


def following(previous: SubscriptionFact | None, current: SubscriptionFact) -> SubscriptionFact:
    """`current`, with what only the earlier fact remembers: since when, and what it was before."""
    if previous is None:
        return current
    if current.status == "past_due" and previous.status == "past_due":
        since = min((at for at in (previous.past_due_since, current.past_due_since) if at is not None), default=None)
        return replace(current, past_due_since=since)
    if current.status in KNOWN_STATUSES:
        return current
    if previous.status == current.status:
        return replace(current, status_since=previous.status_since, last_known_status=previous.last_known_status)
    known = previous.status if previous.status in KNOWN_STATUSES else previous.last_known_status
    return replace(current, last_known_status=known)


def is_news(previous: SubscriptionFact | None, current: SubscriptionFact) -> bool:
    """Whether storing `current` can matter: it says something else, or it confirms what had grown old."""
    if previous is None or replace(previous, fetched_at=current.fetched_at) != current:
        return True
    if current.fetched_at - previous.fetched_at >= _REFRESH_AFTER:
        return True
    instants = (current.trial_end, current.cancel_at, current.period_end)
    return any(previous.fetched_at < at <= current.fetched_at for at in instants if at is not None)


def tombstone(fact: SubscriptionFact, *, fetched_at: datetime) -> SubscriptionFact:
    """Stripe no longer knows the subscription."""
    return replace(fact, status="canceled", fetched_at=fetched_at)


def _lines(body: Mapping[str, Any]) -> tuple[PriceLine, ...]:
    """Since 2025-03-31 (basil) each item has a period of its own; before that the subscription had one for all."""
    data = _mapping(body, "items").get("data")
    items = [item for item in data if isinstance(item, Mapping)] if isinstance(data, list) else []
    lines = []
    for item in items:
        price_id = _id_of(item.get("price")) or _id_of(item.get("plan"))
        if price_id is not None:
            start = _instant(item, "current_period_start") or _instant(body, "current_period_start")
            end = _instant(item, "current_period_end") or _instant(body, "current_period_end")
            lines.append(PriceLine(price_id, start, end))
    return tuple(sorted(lines, key=lambda line: line.price_id))


def _past_due_since(body: Mapping[str, Any]) -> datetime | None:
    """When the unpaid invoice was finalized or made; a renewal's invoice is made when the period starts."""
    invoice = _mapping(body, "latest_invoice")
    return (
        _instant(_mapping(invoice, "status_transitions"), "finalized_at")
        or _instant(invoice, "created")
        or min((line.period_start for line in _lines(body) if line.period_start is not None), default=None)
    )


def _mapping(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) and value else None


def _id_of(value: object) -> str | None:
    """An id, given bare or as the expanded object."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return value if isinstance(value, str) and value else None


def _instant(body: Mapping[str, Any], name: str) -> datetime | None:
    value = body.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**33:
        return None
    return datetime.fromtimestamp(value, UTC)
