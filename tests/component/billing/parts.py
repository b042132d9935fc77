"""The parts of billing that need a database alone, on a clock that a test moves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.billing.deciding import Deciding
from services.billing.handlers import Handlers
from services.billing.holding import Holding
from services.billing.policy import Policy
from services.billing.store import Stores, build_stores
from services.billing.store.facts import Customer
from services.billing.subscription import SubscriptionFact
from shared.clock import Clock
from shared.contracts.billing import EligibilityChanged, HoldReply, HoldRequest
from shared.contracts.content import Outcome, Usage
from shared.contracts.results import RESULT_BY_STATUS, ResultEnded
from shared.ids import new_id
from shared.postgres import Database
from tests.unit.billing.facts import DAY, NOW, POLICY, line, subscription

ACCOUNT = "acct_1"


@dataclass
class Parts:
    """Holds, decisions and endings over one database."""

    database: Database
    clock: Clock
    stores: Stores
    deciding: Deciding
    holding: Holding
    handlers: Handlers

    async def learn(self, account_id: str, *facts: SubscriptionFact) -> list[EligibilityChanged]:
        """What the event worker does once it has looked: keep the facts, decide."""
        async with self.database.transaction() as connection:
            for fact in facts:
                customer = Customer(fact.customer_id, account_id, deleted=False)
                await self.stores.facts.upsert_customer(connection, customer, fetched_at=self.clock.now())
                await self.stores.facts.upsert_subscription(connection, fact, {})
            return await self.deciding.refresh(connection, account_id)

    async def subscribe(
        self, account_id: str = ACCOUNT, *, price: str = "price_pro", status: str = "active", **fields: Any
    ) -> None:
        """A subscription of the account's own, active unless told otherwise."""
        name = f"{account_id}_{price}"
        fact = subscription(
            status, subscription_id=f"sub_{name}", customer_id=f"cus_{name}", lines=(line(price),), **fields
        )
        await self.learn(account_id, fact)

    async def hold(self, *asked: HoldRequest) -> list[HoldReply]:
        return await self.holding.answer(asked)

    async def end(self, *results: ResultEnded) -> None:
        assert await self.handlers.result_ended(results) == []

    async def credit(self, account_id: str = ACCOUNT) -> tuple[int | None, int, int]:
        """(granted, settled, held) of the account's one period."""
        row = await self.database.fetchrow(
            "SELECT granted, settled, held FROM credit_accounts WHERE account_id = $1", account_id
        )
        assert row is not None
        return row["granted"], row["settled"], row["held"]

    async def ledger(self, request_id: str) -> dict[str, int]:
        rows = await self.database.fetch("SELECT kind, tokens FROM ledger WHERE request_id = $1", request_id)
        return {row["kind"]: row["tokens"] for row in rows}

    async def state(self, request_id: str) -> str:
        state: str = await self.database.fetchval("SELECT state FROM holds WHERE request_id = $1", request_id)
        return state


def build_parts(database: Database, clock: Clock, policy: Policy = POLICY) -> Parts:
    stores = build_stores(database)
    return Parts(
        database,
        clock,
        stores,
        Deciding(database, stores.facts, stores.decisions, stores.checkouts, policy, clock),
        Holding(database, stores.holds, stores.decisions, policy, clock),
        Handlers(stores.holds, clock),
    )


def question(
    request_id: str | None = None,
    *,
    tokens: int = 100,
    account_id: str = ACCOUNT,
    model: str = "default",
    expires_at: datetime = NOW + DAY,
) -> HoldRequest:
    return HoldRequest(
        request_id=request_id or new_id("req"),
        account_id=account_id,
        model=model,
        tokens=tokens,
        expires_at=expires_at,
    )


def result(
    request_id: str, tokens: int | None, *, status: Outcome = "completed", account_id: str = ACCOUNT
) -> ResultEnded:
    """The ending of a request; without tokens no provider was called."""
    return RESULT_BY_STATUS[status](
        request_id=request_id,
        account_id=account_id,
        session_id="ses_1",
        seq=1,
        cursor=1,
        status=status,
        usage=Usage(input_tokens=tokens, output_tokens=0) if tokens is not None else None,
        provider_called=tokens is not None,
        ended_at=NOW,
        ended_by="session.ended",
    )
