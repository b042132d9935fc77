"""Finds what webhooks missed: undelivered events, subscriptions that differ from ours, and ones that are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, get_args

from services.billing.store.events import EventStore
from services.billing.store.facts import FactStore
from services.billing.stripe_client import Body, StripeClient
from services.billing.stripe_event import EventMalformed, StripeEvent, look_event, parse_event
from services.billing.subscription import TERMINAL_STATUSES, NotASubscription, following, is_news, read_subscription
from shared.clock import Clock
from shared.logs import get_logger
from shared.metrics import counter

log = get_logger(__name__)

_EVENTS_KEPT_FOR: Final = timedelta(days=29)
"""Stripe lists events for 30 days."""
_OVERLAP: Final = timedelta(hours=2)
"""Read again at every turn: an event can appear in the list after later ones."""
_CURSOR: Final = "undelivered_events"
_PAGES_MAX: Final = 10_000
_VANISHED_MAX: Final = 1000

_Kind = Literal["undelivered_event", "difference", "vanished"]
_found = counter("billing_reconciled", "Differences found between Stripe and us.", ("kind",), from_zero=get_args(_Kind))


class Reconciler:
    """Only finds; what is to be looked at becomes a row that the event worker works on like any other."""

    def __init__(self, events: EventStore, facts: FactStore, stripe: StripeClient, clock: Clock) -> None:
        self._events = events
        self._facts = facts
        self._stripe = stripe
        self._clock = clock

    async def run(self) -> None:
        """One whole comparison."""
        started = self._clock.now()
        found = await self._take_undelivered(started)
        found += await self._compare_subscriptions(started)
        if found:
            log.warning("reconcile.found", count=found)

    async def _take_undelivered(self, started: datetime) -> int:
        cursor = await self._facts.select_cursor(_CURSOR)
        since = max(started - _EVENTS_KEPT_FOR, cursor - _OVERLAP if cursor is not None else started - _EVENTS_KEPT_FOR)
        found = 0
        async for bodies in self._stripe.undelivered_events(since=since):
            parsed = [event for event in map(_parsed, bodies) if event is not None]
            if parsed:
                found += await self._events.insert_events_if_new(parsed)
        await self._facts.upsert_cursor(_CURSOR, started)
        _found.labels("undelivered_event").inc(found)
        return found

    async def _compare_subscriptions(self, started: datetime) -> int:
        found = 0
        seen: set[str] = set()
        after: str | None = None
        for _ in range(_PAGES_MAX):
            page = await self._stripe.subscriptions_page(after=after)
            seen.update(str(body.get("id")) for body in page.items)
            found += await self._compare_page(page.items)
            after = page.next_after
            if after is None:
                return found + await self._look_for_vanished(seen, started)
        log.error("reconcile.truncated", pages=_PAGES_MAX)
        return found

    async def _compare_page(self, bodies: Sequence[Body]) -> int:
        """The list was read outside of any lock, so it is never applied: it only says where to look."""
        now = self._clock.now()
        known = await self._facts.select_known_facts([str(body.get("id")) for body in bodies])
        looks = []
        for body in bodies:
            try:
                listed = read_subscription(body, fetched_at=now)
            except NotASubscription:
                continue
            previous = known.get(listed.subscription_id)
            if previous is not None and previous.customer_deleted:
                # Of a deleted customer nothing lives on: this one is there, and all he has is to be read again.
                if listed.status not in TERMINAL_STATUSES:
                    looks.append(_look(None, listed.customer_id, f"{now:%Y%m%d%H}:there"))
            elif is_news(previous, following(previous, listed)):
                looks.append(_look(listed.subscription_id, listed.customer_id, f"{now:%Y%m%d%H}:{body!r}"))
        return await self._insert(looks, "difference")

    async def _look_for_vanished(self, seen: set[str], started: datetime) -> int:
        live = await self._facts.select_live_subscriptions(fetched_before=started, limit=_VANISHED_MAX)
        looks = [
            _look(subscription_id, customer_id, f"{started:%Y%m%d%H}:gone")
            for subscription_id, customer_id in live
            if subscription_id not in seen
        ]
        return await self._insert(looks, "vanished")

    async def _insert(self, looks: Sequence[StripeEvent], kind: _Kind) -> int:
        found = await self._events.insert_events_if_new(looks) if looks else 0
        _found.labels(kind).inc(found)
        return found


def _look(subscription_id: str | None, customer_id: str, why: str) -> StripeEvent:
    """At a subscription, or at a customer and all he has. Its id comes from the difference and the hour, so that
    replicas that find the same leave one row."""
    digest = hashlib.sha256(why.encode(errors="replace")).hexdigest()[:16]
    return look_event(
        f"look:{subscription_id or customer_id}:{digest}", customer_id=customer_id, subscription_id=subscription_id
    )


def _parsed(body: Body) -> StripeEvent | None:
    try:
        return parse_event(body, family="snapshot")
    except EventMalformed as error:
        log.warning("reconcile.event_malformed", error=str(error))
        return None
