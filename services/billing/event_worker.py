"""Works through stored events: looks at the object in Stripe now, keeps the facts, decides, all in one transaction."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from services.billing.deciding import Deciding
from services.billing.payment import NotACharge, read_payment
from services.billing.policy import Policy
from services.billing.store.events import ClaimedEvent, EventStore
from services.billing.store.facts import Customer, FactStore
from services.billing.stripe_client import ACCOUNT_KEY, Body, StripeClient, StripeRefused, StripeUnavailable
from services.billing.subscription import (
    TERMINAL_STATUSES,
    NotASubscription,
    SubscriptionFact,
    following,
    is_news,
    read_subscription,
    tombstone,
)
from shared.clock import Clock
from shared.contracts.billing import EligibilityChanged
from shared.logs import get_logger
from shared.metrics import counter
from shared.postgres import Connection, Database, DatabaseRefused, DatabaseUnavailable, savepoint

log = get_logger(__name__)

_LOOK_SECONDS_MAX: Final = 8.0
"""All calls of one look. Less than the database lets a transaction stand idle."""

_ACCOUNT_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

_worked = counter("billing_stripe_events", "Stored events worked on, by outcome.", ("outcome",))


class _Ignored(Exception):
    """The event is about nothing that we keep."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EventWorker:
    """Takes one due event at a time. Several may run: events are claimed and customers are locked."""

    def __init__(
        self,
        database: Database,
        events: EventStore,
        facts: FactStore,
        deciding: Deciding,
        stripe: StripeClient,
        policy: Policy,
        clock: Clock,
        *,
        announce: Callable[[Sequence[EligibilityChanged]], None],
        attempts_max: int,
        backoff_seconds_max: float,
    ) -> None:
        self._database = database
        self._events = events
        self._facts = facts
        self._deciding = deciding
        self._stripe = stripe
        self._policy = policy
        self._clock = clock
        self._announce = announce
        self._attempts_max = attempts_max
        self._backoff_seconds_max = backoff_seconds_max

    async def run_until_idle(self) -> None:
        while await self.run_once():
            continue

    async def run_once(self) -> bool:
        """Work on one due event; False where there was none."""
        async with self._database.transaction() as connection:
            event = await self._events.select_event_due_for_update(connection)
            if event is None:
                return False
            changes: list[EligibilityChanged] = []
            try:
                async with savepoint(connection):
                    changes = await self._work(connection, event)
            except Exception as error:
                # Under the same claim: between a rollback and this update another worker would take the event again.
                await self._postpone(connection, event, error)
        self._announce(changes)
        return True

    async def _work(self, connection: Connection, event: ClaimedEvent) -> list[EligibilityChanged]:
        try:
            changes = await self._apply(connection, event)
        except _Ignored as ignored:
            await self._events.update_event_ignored(connection, event.event_id, ignored.reason)
            log.info("event.ignored", event_id=event.event_id, type=event.type, reason=ignored.reason)
            _worked.labels("ignored").inc()
            return []
        await self._events.update_event_applied(connection, event)
        log.info("event.applied", event_id=event.event_id, type=event.type)
        _worked.labels("applied").inc()
        return changes

    async def _apply(self, connection: Connection, event: ClaimedEvent) -> list[EligibilityChanged]:
        if event.livemode is not None and event.livemode is not self._policy.livemode:
            raise _Ignored("livemode_mismatch")
        customer_id = event.customer_id or await self._customer_of(event)
        await self._events.lock_customer(connection, customer_id)
        customer = await self._facts.select_customer(connection, customer_id)
        about_customer = event.subscription_id is None and event.charge_id is None
        # Whoever was taken for deleted is read again: if he is there after all, so is what he has.
        if customer is None or customer.account_id is None or customer.deleted or about_customer:
            touched = await self._look_at_customer(connection, customer_id, customer)
        elif event.subscription_id is not None:
            touched = await self._look_at_subscription(connection, customer, event.subscription_id)
        else:
            touched = {customer.account_id}
        if event.charge_id is not None:
            await self._look_at_payment(connection, customer_id, event.charge_id)
        changes: list[EligibilityChanged] = []
        for account_id in sorted(touched):
            changes += await self._deciding.refresh(connection, account_id)
        return changes

    async def _customer_of(self, event: ClaimedEvent) -> str:
        """A thin event names the subscription only, a dispute its charge; whose these are never changes, so this may be
        read before the lock."""
        if event.charge_id is not None:
            return await self._payer_of(event.charge_id)
        subscription_id = event.subscription_id
        if subscription_id is None:
            raise _Ignored("type_not_used")
        known = (await self._facts.select_known_facts([subscription_id])).get(subscription_id)
        if known is not None:
            return known.customer_id
        body = await self._stripe.subscription(subscription_id)
        if body is None:
            raise _Ignored("subscription_unknown")
        return read_subscription(body, fetched_at=self._clock.now()).customer_id

    async def _payer_of(self, charge_id: str) -> str:
        charge = await self._stripe.charge(charge_id)
        if charge is None:
            raise _Ignored("charge_unknown")
        customer_id = charge.get("customer")
        if not isinstance(customer_id, str):
            raise _Ignored("charge_without_customer")
        return customer_id

    async def _look_at_payment(self, connection: Connection, customer_id: str, charge_id: str) -> None:
        now = self._clock.now()
        async with _bounded():
            charge = await self._stripe.charge(charge_id)
            if charge is None:
                raise _Ignored("charge_unknown")
            intent_id = charge.get("payment_intent")
            fact = read_payment(
                charge,
                invoice_id=await self._stripe.invoice_of(intent_id) if isinstance(intent_id, str) else None,
                disputes=await self._stripe.disputes_of(charge_id),
                fraud_warning=bool(await self._stripe.fraud_warnings_of(charge_id)),
            )
        await self._facts.upsert_payment(connection, customer_id, fact, fetched_at=now)

    async def _look_at_customer(self, connection: Connection, customer_id: str, known: Customer | None) -> set[str]:
        """Its owner and all of its subscriptions; the accounts whose facts may have changed."""
        now = self._clock.now()
        async with _bounded():
            reading = self._stripe.customer if known is None else self._stripe.known_customer
            body = await reading(customer_id)
            deleted = body is None or body.get("deleted") is True
            listed = [] if body is None or deleted else await self._stripe.subscriptions_of(customer_id)
        # What Stripe says of a deleted customer has no metadata any more: it stays with the account it had.
        account_id = (known.account_id if known is not None else None) if deleted else _account_of(body or {})
        touched = {owner for owner in (account_id, known.account_id if known is not None else None) if owner}
        if not touched:
            raise _Ignored("customer_without_account")
        await self._facts.upsert_customer(connection, Customer(customer_id, account_id, deleted), fetched_at=now)
        before = await self._facts.select_subscriptions(connection, customer_id)
        bodies = {str(found.get("id")): found for found in listed}
        for subscription_id in sorted({*before, *bodies}):
            previous = before.get(subscription_id)
            current = _current(bodies.get(subscription_id), previous, fetched_at=now, deleted=deleted)
            await self._keep(connection, previous, current, bodies.get(subscription_id))
        return touched

    async def _look_at_subscription(self, connection: Connection, customer: Customer, subscription_id: str) -> set[str]:
        now = self._clock.now()
        async with _bounded():
            body = await self._stripe.subscription(subscription_id)
            if body is None:  # with a key of another account nothing is there: then not even its customer
                await self._stripe.known_customer(customer.customer_id)
        previous = (await self._facts.select_subscriptions(connection, customer.customer_id)).get(subscription_id)
        if body is None and previous is None:
            raise _Ignored("subscription_unknown")
        current = _current(body, previous, fetched_at=now, deleted=customer.deleted)
        if current.customer_id != customer.customer_id:
            raise _Ignored("customer_mismatch")
        await self._keep(connection, previous, current, body)
        return {customer.account_id} if customer.account_id is not None else set()

    async def _keep(
        self,
        connection: Connection,
        previous: SubscriptionFact | None,
        current: SubscriptionFact,
        body: dict[str, Any] | None,
    ) -> None:
        if is_news(previous, current):
            if previous is not None and previous.status in TERMINAL_STATUSES and current.status != previous.status:
                log.warning("subscription.reopened", subscription_id=current.subscription_id, status=current.status)
            await self._facts.upsert_subscription(connection, current, body)

    async def _postpone(self, connection: Connection, event: ClaimedEvent, error: Exception) -> None:
        code = _code(error)
        state = await self._events.update_event_failed(
            connection,
            event.event_id,
            code,
            attempts_max=self._attempts_max,
            backoff_seconds_max=self._backoff_seconds_max,
        )
        if state == "dead":
            log.error("event.dead", event_id=event.event_id, type=event.type, error=code, exc_info=error)
        else:
            log.warning("event.postponed", event_id=event.event_id, error=code, attempts=event.attempts + 1)
        _worked.labels(state).inc()


def _current(
    body: Body | None, previous: SubscriptionFact | None, *, fetched_at: datetime, deleted: bool
) -> SubscriptionFact:
    """The fact as Stripe has it now; of what Stripe no longer has, the end of what we knew."""
    if body is not None:
        return replace(following(previous, read_subscription(body, fetched_at=fetched_at)), customer_deleted=deleted)
    assert previous is not None
    ended = previous if previous.status in TERMINAL_STATUSES else tombstone(previous, fetched_at=fetched_at)
    return replace(ended, customer_deleted=deleted)


@asynccontextmanager
async def _bounded() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_LOOK_SECONDS_MAX):
            yield
    except TimeoutError:
        raise StripeUnavailable("timeout") from None


def _account_of(body: Body) -> str | None:
    metadata = body.get("metadata")
    value = metadata.get(ACCOUNT_KEY) if isinstance(metadata, dict) else None
    return value if isinstance(value, str) and _ACCOUNT_ID.fullmatch(value) else None


def _code(error: Exception) -> str:
    """What the row says about a failed try: stable, and without any data."""
    match error:
        case StripeUnavailable() | StripeRefused():
            return f"stripe_{error.code}"
        case DatabaseUnavailable() | DatabaseRefused():
            return f"database_{error.sqlstate or 'unavailable'}"
        case NotASubscription():
            return "subscription_malformed"
        case NotACharge():
            return "charge_malformed"
        case _:
            return f"unexpected_{type(error).__name__}"
