"""The table `checkouts`: at most one open attempt of an account to buy a plan."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.postgres import Connection, Database


@dataclass(frozen=True)
class Checkout:
    """`url` is None until Stripe has answered."""

    checkout_id: str
    plan: str
    session_id: str | None
    url: str | None


class CheckoutStore:
    """An attempt is closed by the account's first ALLOW, by its time, or with the account's last customer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_checkout_if_none_open(
        self, checkout_id: str, account_id: str, plan: str, *, now: datetime, expires_at: datetime
    ) -> Checkout:
        """The open attempt: the one there was, else this one."""
        async with self._database.transaction() as connection:
            await connection.execute(
                """
                UPDATE checkouts SET closed_at = $3
                WHERE account_id = $1 AND plan = $2 AND closed_at IS NULL AND expires_at <= $3
                """,
                account_id,
                plan,
                now,
            )
            await connection.execute(
                """
                INSERT INTO checkouts (checkout_id, account_id, plan, expires_at) VALUES ($1, $2, $3, $4)
                ON CONFLICT (account_id, plan) WHERE closed_at IS NULL DO NOTHING
                """,
                checkout_id,
                account_id,
                plan,
                expires_at,
            )
            row = await connection.fetchrow(
                """
                SELECT checkout_id, plan, session_id, url FROM checkouts
                WHERE account_id = $1 AND plan = $2 AND closed_at IS NULL
                """,
                account_id,
                plan,
            )
        assert row is not None
        return Checkout(**dict(row))

    async def select_checkout_open(self, account_id: str, *, now: datetime) -> str | None:
        """An attempt that has reached Stripe and may be paid by now."""
        checkout_id: str | None = await self._database.fetchval(
            """
            SELECT checkout_id FROM checkouts
            WHERE account_id = $1 AND closed_at IS NULL AND session_id IS NOT NULL AND expires_at > $2
            ORDER BY created_at DESC LIMIT 1
            """,
            account_id,
            now,
        )
        return checkout_id

    async def update_checkout_session_if_open(self, checkout_id: str, session_id: str, url: str) -> None:
        await self._database.execute(
            "UPDATE checkouts SET session_id = $2, url = $3 WHERE checkout_id = $1 AND closed_at IS NULL",
            checkout_id,
            session_id,
            url,
        )

    async def update_checkouts_closed(self, connection: Connection, account_id: str) -> None:
        await connection.execute(
            "UPDATE checkouts SET closed_at = clock_timestamp() WHERE account_id = $1 AND closed_at IS NULL", account_id
        )
