"""What time alone changes: decisions whose `valid_until` has passed, holds that nobody ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from services.billing.deciding import Deciding
from services.billing.store import Stores
from services.billing.stripe_event import look_event
from shared.clock import Clock
from shared.contracts.billing import EligibilityChanged
from shared.errors import Transient
from shared.logs import get_logger
from shared.metrics import counter, gauge
from shared.postgres import Database

log = get_logger(__name__)

_ACCOUNTS_MAX: Final = 200
_HOLDS_MAX: Final = 500

_expired = counter("billing_holds_expired", "Holds that ended by their time.")
_decided = counter("billing_decisions_due", "Decisions made anew because their time had run out.")
_events_waiting = gauge("billing_stripe_events_waiting", "Stored events that are not applied yet.")
_events_lag = gauge("billing_stripe_events_lag_seconds", "Age of the oldest stored event that is not applied yet.")
_events_dead = gauge("billing_stripe_events_dead", "Stored events that were given up: run `reconcile` to revive them.")


class Sweeping:
    """Each sweep takes what is due; replicas that sweep at once find less to do."""

    def __init__(
        self,
        database: Database,
        stores: Stores,
        deciding: Deciding,
        clock: Clock,
        *,
        announce: Callable[[Sequence[EligibilityChanged]], None],
        on_stored: Callable[[], None],
    ) -> None:
        self._database = database
        self._stores = stores
        self._deciding = deciding
        self._clock = clock
        self._announce = announce
        self._on_stored = on_stored

    async def decide_due(self) -> None:
        """Decide again where time has run out, and ask Stripe what became of the subscriptions behind it."""
        for account_id in await self._stores.decisions.select_accounts_due(self._clock.now(), limit=_ACCOUNTS_MAX):
            try:
                await self._decide(account_id)
            except Transient:
                raise
            except Exception as error:  # one account that cannot be decided must not stop the others
                log.error("decision.failed", account_id=account_id, exc_info=error)

    async def expire_holds(self) -> None:
        """Give back what requests reserved that never ended in time."""
        while True:
            count = await self._stores.holds.update_holds_expired_if_due(self._clock.now(), limit=_HOLDS_MAX)
            if count:
                log.warning("holds.expired", count=count)
                _expired.inc(count)
            if count < _HOLDS_MAX:
                return

    async def count_events(self) -> None:
        counts = await self._stores.events.select_event_counts()
        _events_waiting.set(counts.get("received", 0) + counts.get("failed", 0))
        _events_dead.set(counts.get("dead", 0))
        _events_lag.set(await self._stores.events.select_event_lag_seconds())

    async def _decide(self, account_id: str) -> None:
        async with self._database.transaction() as connection:
            changes = await self._deciding.refresh(connection, account_id)
        _decided.inc()
        self._announce(changes)
        await self._look_again(account_id)

    async def _look_again(self, account_id: str) -> None:
        hour = f"{self._clock.now():%Y%m%d%H}"
        looks = [
            look_event(f"clock:{subscription_id}:{hour}", customer_id=customer_id, subscription_id=subscription_id)
            for subscription_id, customer_id in await self._stores.facts.select_live_subscriptions_of_account(
                account_id
            )
        ]
        if looks and await self._stores.events.insert_events_if_new(looks):
            self._on_stored()
