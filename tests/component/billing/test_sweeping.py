"""Each sweep of billing at its time, not before, and counted; all clocks, the database's too, move by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from services.billing.event_worker import EventWorker
from services.billing.stripe_client import ACCOUNT_KEY, StripeUnavailable
from services.billing.stripe_event import look_event
from services.billing.sweeping import Sweeping
from shared.contracts.billing import EligibilityChanged
from shared.contracts.message import Message
from shared.messaging.owed import OwedPublishes
from shared.postgres import Database
from tests.component.billing.parts import ACCOUNT, Parts, question
from tests.support.clock import DatabaseTime, FakeClock
from tests.support.counted import counted
from tests.unit.billing.facts import HOUR, NOW, POLICY

OWED_SECONDS = 5
RETRY_SECONDS = 2


@pytest.fixture
async def dsn(database_dsn: Callable[[str], Awaitable[str]]) -> str:
    dsn = await database_dsn("billing")
    await DatabaseTime(dsn).become_movable()
    return dsn


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    database = Database(dsn, service="billing-test", pool_max=5)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
def announced() -> list[EligibilityChanged]:
    return []


@pytest.fixture
def sweeping(parts: Parts, clock: FakeClock, announced: list[EligibilityChanged]) -> Sweeping:
    return Sweeping(
        parts.database, parts.stores, parts.deciding, clock, announce=announced.extend, on_stored=lambda: None
    )


async def test_a_hold_that_nobody_ended_expires_at_its_time(parts: Parts, sweeping: Sweeping, clock: FakeClock) -> None:
    await parts.subscribe()
    asked = question(expires_at=NOW + HOUR)
    await parts.hold(asked)
    before = counted("billing_holds_expired")
    await clock.advance(HOUR.total_seconds() - 1)
    await sweeping.expire_holds()
    assert (counted("billing_holds_expired"), await parts.state(asked.request_id)) == (before, "held")
    await clock.advance(1)
    await sweeping.expire_holds()
    assert (counted("billing_holds_expired"), await parts.state(asked.request_id)) == (before + 1, "expired")
    assert (await parts.credit())[2] == 0


async def test_a_decision_is_made_anew_when_its_time_runs_out(
    parts: Parts, sweeping: Sweeping, clock: FakeClock
) -> None:
    await parts.subscribe()
    valid_until = await parts.database.fetchval("SELECT valid_until FROM eligibilities")
    before = counted("billing_decisions_due")
    await clock.advance((valid_until - clock.now()).total_seconds() - 1)
    await sweeping.decide_due()
    assert counted("billing_decisions_due") == before
    await clock.advance(1)
    await sweeping.decide_due()
    assert counted("billing_decisions_due") == before + 1
    # Stripe is asked what became of the subscription behind it.
    assert await parts.database.fetchval("SELECT count(*) FROM stripe_events WHERE state = 'received'") == 1


class Confirming:
    """A broker that takes everything."""

    def __init__(self) -> None:
        self.published: list[Message] = []

    async def publish_each(self, messages: Sequence[Message]) -> list[str]:
        self.published.extend(messages)
        return ["confirmed"] * len(messages)


async def test_a_change_that_nobody_was_told_of_is_paid_once_it_is_old(
    parts: Parts, clock: FakeClock, dsn: str
) -> None:
    publisher: Any = Confirming()
    owed = OwedPublishes(
        "eligibility_changes",
        publisher,
        select_owed=parts.stores.decisions.select_changes_owed,
        mark_published=parts.stores.decisions.update_changes_published,
    )
    database_time = DatabaseTime(dsn)
    await database_time.advance((clock.now() - await parts.database.now()).total_seconds())
    await parts.subscribe()
    before = counted("owed_publishes_paid", owed="eligibility_changes", payer="sweep")
    assert await owed.sweep() == 0
    await database_time.advance(OWED_SECONDS + 1)
    assert await owed.sweep() == 1
    assert await owed.sweep() == 0
    assert counted("owed_publishes_paid", owed="eligibility_changes", payer="sweep") == before + 1
    assert [message.subject for message in publisher.published] == [ACCOUNT]


class StripeWithABadDay:
    """It is away for the first call of a test, and knows one customer without a subscription."""

    def __init__(self) -> None:
        self.calls = 0

    async def customer(self, customer_id: str) -> dict[str, Any]:
        self.calls += 1
        if self.calls == 1:
            raise StripeUnavailable("timeout")
        return {"id": customer_id, "metadata": {ACCOUNT_KEY: ACCOUNT}}

    async def subscriptions_of(self, customer_id: str) -> list[dict[str, Any]]:
        return []


async def test_an_event_that_could_not_be_worked_on_is_taken_up_again_when_it_is_due(
    parts: Parts, sweeping: Sweeping, clock: FakeClock, dsn: str, announced: list[EligibilityChanged]
) -> None:
    stripe: Any = StripeWithABadDay()
    worker = EventWorker(
        parts.database,
        parts.stores.events,
        parts.stores.facts,
        parts.deciding,
        stripe,
        POLICY,
        clock,
        announce=announced.extend,
        attempts_max=5,
        backoff_seconds_max=RETRY_SECONDS,
    )
    event = look_event("evt_1", customer_id="cus_1", subscription_id=None)
    await parts.stores.events.insert_events_if_new([event])
    failed, applied = (counted("billing_stripe_events", outcome=outcome) for outcome in ("failed", "applied"))
    await worker.run_until_idle()
    assert counted("billing_stripe_events", outcome="failed") == failed + 1
    await DatabaseTime(dsn).advance(RETRY_SECONDS)
    await worker.run_until_idle()
    assert counted("billing_stripe_events", outcome="applied") == applied + 1
    assert stripe.calls == 2
    await sweeping.count_events()
