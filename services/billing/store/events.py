"""The table `stripe_events`: what to look at in Stripe, and how far we are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.billing.stripe_event import StripeEvent
from shared.postgres import Connection, Database


@dataclass(frozen=True)
class ClaimedEvent:
    """An event that this transaction alone works on."""

    event_id: str
    type: str
    livemode: bool | None
    customer_id: str | None
    subscription_id: str | None
    charge_id: str | None
    attempts: int


class EventStore:
    """What is due is claimed with SKIP LOCKED; the claim ends with the transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_events_if_new(self, events: Sequence[StripeEvent]) -> int:
        """How many were not known yet."""
        tag = await self._database.execute(
            """
            INSERT INTO stripe_events (event_id, family, type, livemode, api_version, customer_id, subscription_id,
                                       raw, secret_index, charge_id, state)
            SELECT e.*, 'received'
            FROM unnest($1::text[], $2::text[], $3::text[], $4::boolean[], $5::text[], $6::text[], $7::text[],
                        $8::bytea[], $9::smallint[], $10::text[]) AS e
            ORDER BY 1
            ON CONFLICT (event_id) DO NOTHING
            """,
            [event.event_id for event in events],
            [event.family for event in events],
            [event.type for event in events],
            [event.livemode for event in events],
            [event.api_version for event in events],
            [event.customer_id for event in events],
            [event.subscription_id for event in events],
            [event.raw for event in events],
            [event.secret_index for event in events],
            [event.charge_id for event in events],
        )
        return int(tag.rpartition(" ")[2])

    async def select_event_due_for_update(self, connection: Connection) -> ClaimedEvent | None:
        row = await connection.fetchrow(
            """
            SELECT event_id, type, livemode, customer_id, subscription_id, charge_id, attempts
            FROM stripe_events
            WHERE state IN ('received', 'failed') AND next_attempt_at <= clock_timestamp()
            ORDER BY next_attempt_at
            LIMIT 1
            FOR UPDATE SKIP LOCKED
            """
        )
        return ClaimedEvent(**dict(row)) if row is not None else None

    async def lock_customer(self, connection: Connection, customer_id: str) -> None:
        """One transaction at a time looks at a customer and its subscriptions."""
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('customer:' || $1, 0))", customer_id)

    async def update_event_applied(self, connection: Connection, event: ClaimedEvent) -> None:
        """Marks the event, and every other one that asked to look at the same object before we did."""
        await connection.execute(
            """
            WITH same AS (
                SELECT event_id FROM stripe_events
                WHERE customer_id = $2 AND subscription_id IS NOT DISTINCT FROM $3
                  AND livemode IS NOT DISTINCT FROM $4
                  AND state IN ('received', 'failed') AND received_at < now()
                FOR UPDATE SKIP LOCKED
            )
            UPDATE stripe_events SET state = 'applied', ended_at = clock_timestamp(), attempts = attempts + 1
            WHERE (event_id = $1 OR event_id IN (SELECT event_id FROM same)) AND state IN ('received', 'failed')
            """,
            event.event_id,
            event.customer_id,
            event.subscription_id,
            event.livemode,
        )

    async def update_event_ignored(self, connection: Connection, event_id: str, reason: str) -> None:
        await connection.execute(
            """
            UPDATE stripe_events
            SET state = 'ignored', reason = $2, ended_at = clock_timestamp(), attempts = attempts + 1
            WHERE event_id = $1 AND state IN ('received', 'failed')
            """,
            event_id,
            reason,
        )

    async def update_event_failed(
        self, connection: Connection, event_id: str, error: str, *, attempts_max: int, backoff_seconds_max: float
    ) -> str:
        """Back off, twice as long each time, or give up; the state of the event, which is claimed, from now on."""
        state: str = await connection.fetchval(
            """
            UPDATE stripe_events
            SET attempts = attempts + 1,
                last_error = $2,
                state = CASE WHEN attempts + 1 >= $3 THEN 'dead' ELSE 'failed' END,
                ended_at = CASE WHEN attempts + 1 >= $3 THEN clock_timestamp() END,
                next_attempt_at = clock_timestamp()
                    + make_interval(secs => least($4::float8, power(2, least(attempts, 20))::float8))
            WHERE event_id = $1
            RETURNING state
            """,
            event_id,
            error,
            attempts_max,
            backoff_seconds_max,
        )
        return state

    async def update_events_revived(self) -> int:
        """Give the dead another chance."""
        tag = await self._database.execute(
            """
            UPDATE stripe_events
            SET state = 'received', attempts = 0, ended_at = NULL, next_attempt_at = clock_timestamp()
            WHERE state = 'dead'
            """
        )
        return int(tag.rpartition(" ")[2])

    async def select_event_counts(self) -> dict[str, int]:
        """How many events wait, and how many are dead."""
        rows = await self._database.fetch(
            """
            SELECT state, count(*) AS count FROM stripe_events
            WHERE state IN ('received', 'failed', 'dead') GROUP BY state
            """
        )
        return {row["state"]: row["count"] for row in rows}

    async def select_event_lag_seconds(self) -> float:
        """Age of the oldest event that is not applied yet; 0 where there is none."""
        seconds: float = await self._database.fetchval(
            """
            SELECT coalesce(extract(epoch FROM clock_timestamp() - min(received_at)), 0)::float8 FROM stripe_events
            WHERE state IN ('received', 'failed')
            """
        )
        return seconds
