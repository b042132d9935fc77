"""What Stripe and operators said: customers, subscriptions, overlays, and the cursor of the reconciler."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import TypeAdapter

from services.billing.eligibility import AccountFacts, Overlay
from services.billing.payment import PaymentFact
from services.billing.policy import Policy
from services.billing.subscription import TERMINAL_STATUSES, SubscriptionFact
from shared.postgres import Connection, Database

_FACT: Final = TypeAdapter(SubscriptionFact)
_PAYMENT: Final = TypeAdapter(PaymentFact)


@dataclass(frozen=True)
class Customer:
    """A Stripe customer; `account_id` is None where its metadata names none."""

    customer_id: str
    account_id: str | None
    deleted: bool


class FactStore:
    """Facts are written by the event worker inside its transaction, and by operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def upsert_policy_started(self, policy: Policy) -> None:
        """Keep the rules by which this process decides."""
        await self._database.execute(
            """
            INSERT INTO policies (version, body, last_started_at) VALUES ($1, $2::jsonb, clock_timestamp())
            ON CONFLICT (version) DO UPDATE SET last_started_at = EXCLUDED.last_started_at
            """,
            policy.version,
            policy.model_dump_json(),
        )

    async def update_eligibilities_due_if_policy_is_newest(self, version: str) -> None:
        """Let every account that was decided by other rules be decided again; old replicas leave this to new ones."""
        await self._database.execute(
            """
            UPDATE eligibilities SET valid_until = clock_timestamp()
            WHERE policy_version <> $1 AND (valid_until IS NULL OR valid_until > clock_timestamp())
              AND $1 = (SELECT version FROM policies ORDER BY last_started_at DESC LIMIT 1)
            """,
            version,
        )

    async def select_customer(self, connection: Connection, customer_id: str) -> Customer | None:
        row = await connection.fetchrow(
            "SELECT customer_id, account_id, deleted FROM customers WHERE customer_id = $1", customer_id
        )
        return Customer(**dict(row)) if row is not None else None

    async def select_customer_of_account(self, account_id: str) -> str | None:
        """The newest customer that still exists."""
        customer_id: str | None = await self._database.fetchval(
            """
            SELECT customer_id FROM customers WHERE account_id = $1 AND NOT deleted
            ORDER BY fetched_at DESC, customer_id DESC LIMIT 1
            """,
            account_id,
        )
        return customer_id

    async def select_count_customers_deleted(self, account_id: str) -> int:
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM customers WHERE account_id = $1 AND deleted", account_id
        )
        return count

    async def upsert_customer(self, connection: Connection, customer: Customer, *, fetched_at: datetime) -> None:
        """With the account's last customer its open checkouts go too: nobody can pay on their pages any more."""
        await connection.execute(
            """
            INSERT INTO customers (customer_id, account_id, deleted, fetched_at) VALUES ($1, $2, $3, $4)
            ON CONFLICT (customer_id) DO UPDATE
            SET account_id = EXCLUDED.account_id, deleted = EXCLUDED.deleted, fetched_at = EXCLUDED.fetched_at
            """,
            customer.customer_id,
            customer.account_id,
            customer.deleted,
            fetched_at,
        )
        if customer.deleted:
            await connection.execute(
                """
                UPDATE checkouts SET closed_at = clock_timestamp()
                WHERE account_id = $1 AND closed_at IS NULL AND url IS NOT NULL
                  AND NOT EXISTS (SELECT FROM customers WHERE account_id = $1 AND NOT deleted)
                """,
                customer.account_id,
            )

    async def select_subscriptions(self, connection: Connection, customer_id: str) -> dict[str, SubscriptionFact]:
        rows = await connection.fetch(
            "SELECT subscription_id, fact FROM subscriptions WHERE customer_id = $1", customer_id
        )
        return {row["subscription_id"]: _FACT.validate_json(row["fact"]) for row in rows}

    async def upsert_subscription(
        self, connection: Connection, fact: SubscriptionFact, body: Mapping[str, Any] | None
    ) -> None:
        """`body` is what Stripe answered; None where it no longer knows the subscription, and the last one stays."""
        await connection.execute(
            """
            INSERT INTO subscriptions (subscription_id, customer_id, status, fact, body, gone, revision, fetched_at)
            VALUES ($1, $2, $3, $4::jsonb, coalesce($5::jsonb, '{}'), $5 IS NULL, 1, $6)
            ON CONFLICT (subscription_id) DO UPDATE
            SET customer_id = EXCLUDED.customer_id, status = EXCLUDED.status, fact = EXCLUDED.fact,
                body = coalesce($5::jsonb, subscriptions.body), gone = EXCLUDED.gone,
                revision = subscriptions.revision + 1, fetched_at = EXCLUDED.fetched_at
            """,
            fact.subscription_id,
            fact.customer_id,
            fact.status,
            _FACT.dump_json(fact).decode(),
            _storable_json(body) if body is not None else None,
            fact.fetched_at,
        )

    async def upsert_payment(
        self, connection: Connection, customer_id: str, fact: PaymentFact, *, fetched_at: datetime
    ) -> None:
        await connection.execute(
            """
            INSERT INTO payments (charge_id, customer_id, fact, fetched_at) VALUES ($1, $2, $3::jsonb, $4)
            ON CONFLICT (charge_id) DO UPDATE
            SET customer_id = EXCLUDED.customer_id, fact = EXCLUDED.fact, fetched_at = EXCLUDED.fetched_at
            """,
            fact.charge_id,
            customer_id,
            _PAYMENT.dump_json(fact).decode(),
            fetched_at,
        )

    async def select_account_facts(self, connection: Connection, account_id: str) -> AccountFacts:
        """Everything a decision about the account needs, in one order."""
        subscriptions = await connection.fetch(
            """
            SELECT s.fact FROM subscriptions s JOIN customers c USING (customer_id)
            WHERE c.account_id = $1 ORDER BY s.subscription_id
            """,
            account_id,
        )
        overlays = await connection.fetch(
            """
            SELECT kind, until, plan FROM overlays WHERE account_id = $1 AND lifted_at IS NULL
            ORDER BY created_at, overlay_id
            """,
            account_id,
        )
        # Those of the present periods: an account that is refunded each month would else carry all of them along.
        payments = await connection.fetch(
            """
            SELECT p.fact FROM customers c
            JOIN LATERAL (SELECT * FROM payments WHERE customer_id = c.customer_id OFFSET 0) p ON TRUE
            WHERE c.account_id = $1 AND p.fact->>'invoice_id' IN (
                SELECT s.fact->>'latest_invoice_id' FROM subscriptions s WHERE s.customer_id = c.customer_id
            ) ORDER BY p.charge_id
            """,
            account_id,
        )
        all_deleted = await connection.fetchval(
            "SELECT bool_and(deleted) FROM customers WHERE account_id = $1", account_id
        )
        return AccountFacts(
            subscriptions=tuple(_FACT.validate_json(row["fact"]) for row in subscriptions),
            overlays=tuple(Overlay(**dict(row)) for row in overlays),
            customer_deleted=all_deleted is True,
            payments=tuple(_PAYMENT.validate_json(row["fact"]) for row in payments),
        )

    async def select_known_facts(self, subscription_ids: Sequence[str]) -> dict[str, SubscriptionFact]:
        rows = await self._database.fetch(
            "SELECT subscription_id, fact FROM subscriptions WHERE subscription_id = ANY($1)", list(subscription_ids)
        )
        return {row["subscription_id"]: _FACT.validate_json(row["fact"]) for row in rows}

    async def select_live_subscriptions(self, *, fetched_before: datetime, limit: int) -> list[tuple[str, str]]:
        """(subscription, customer) of those that have not ended and were last looked at before the instant."""
        rows = await self._database.fetch(
            """
            SELECT subscription_id, customer_id FROM subscriptions
            WHERE status <> ALL($1) AND fetched_at < $2 ORDER BY fetched_at LIMIT $3
            """,
            sorted(TERMINAL_STATUSES),
            fetched_before,
            limit,
        )
        return [(row["subscription_id"], row["customer_id"]) for row in rows]

    async def select_live_subscriptions_of_account(self, account_id: str) -> list[tuple[str, str]]:
        rows = await self._database.fetch(
            """
            SELECT s.subscription_id, s.customer_id FROM subscriptions s JOIN customers c USING (customer_id)
            WHERE c.account_id = $1 AND s.status <> ALL($2)
            """,
            account_id,
            sorted(TERMINAL_STATUSES),
        )
        return [(row["subscription_id"], row["customer_id"]) for row in rows]

    async def select_account_known(self, connection: Connection, account_id: str) -> bool:
        """Whether a customer, a question or an operator has named the account before."""
        known: bool = await connection.fetchval(
            """
            SELECT EXISTS (SELECT FROM eligibilities WHERE account_id = $1)
                OR EXISTS (SELECT FROM customers WHERE account_id = $1)
            """,
            account_id,
        )
        return known

    async def insert_overlay(
        self, connection: Connection, overlay_id: str, account_id: str, overlay: Overlay, *, reason: str, actor: str
    ) -> None:
        await connection.execute(
            """
            INSERT INTO overlays (overlay_id, account_id, kind, plan, reason, actor, until)
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            """,
            overlay_id,
            account_id,
            overlay.kind,
            overlay.plan,
            reason,
            actor,
            overlay.until,
        )

    async def update_overlays_lifted(self, connection: Connection, account_id: str, *, actor: str) -> int:
        tag = await connection.execute(
            """
            UPDATE overlays SET lifted_at = clock_timestamp(), lifted_by = $2
            WHERE account_id = $1 AND lifted_at IS NULL
            """,
            account_id,
            actor,
        )
        return int(tag.rpartition(" ")[2])

    async def select_cursor(self, name: str) -> datetime | None:
        position: datetime | None = await self._database.fetchval("SELECT position FROM cursors WHERE name = $1", name)
        return position

    async def upsert_cursor(self, name: str, position: datetime) -> None:
        """A cursor never goes back: two replicas that sweep at once leave the later position."""
        await self._database.execute(
            """
            INSERT INTO cursors (name, position) VALUES ($1, $2)
            ON CONFLICT (name) DO UPDATE SET position = greatest(cursors.position, EXCLUDED.position)
            """,
            name,
            position,
        )


def _storable_json(body: Mapping[str, Any]) -> str:
    """JSON without what PostgreSQL's jsonb refuses: U+0000 and lone surrogates become replacement characters."""
    text = json.dumps(body, default=str, ensure_ascii=False).encode("utf-8", "replace").decode()
    return text.replace("\\u0000", "\N{REPLACEMENT CHARACTER}")
