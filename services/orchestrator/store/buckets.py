"""SQL of the token buckets and of the deployments that rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from services.orchestrator.limiter import Bucket
from shared.postgres import Connection, Database


class BucketStore:
    """Rows of `buckets` and `cooldowns`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_buckets_if_absent(self, names: Collection[str]) -> None:
        await self._database.execute(
            "INSERT INTO buckets (name) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING", sorted(names)
        )

    async def select_buckets_for_update(self, connection: Connection, names: Collection[str]) -> dict[str, Bucket]:
        """Locked in the order of their names, so that two flushes never wait for each other."""
        rows = await connection.fetch(
            """
            SELECT name, refilled_at, requests, tokens, closed_until, queue_until
            FROM buckets WHERE name = ANY($1) ORDER BY name FOR NO KEY UPDATE
            """,
            sorted(names),
        )
        return {row["name"]: Bucket(**dict(row)) for row in rows}

    async def update_buckets(self, connection: Connection, buckets: Sequence[Bucket]) -> None:
        """New levels of rows that this transaction has locked."""
        await connection.execute(
            """
            UPDATE buckets SET refilled_at = new.refilled_at, requests = new.requests, tokens = new.tokens,
                closed_until = new.closed_until, queue_until = new.queue_until
            FROM unnest($1::text[], $2::timestamptz[], $3::float8[], $4::float8[], $5::timestamptz[],
                        $6::timestamptz[]) AS new (name, refilled_at, requests, tokens, closed_until, queue_until)
            WHERE buckets.name = new.name
            """,
            *bucket_columns(buckets),
        )

    async def update_bucket_closed(self, name: str, until: datetime) -> None:
        """A later end stays."""
        await self._database.execute(
            "UPDATE buckets SET closed_until = greatest(closed_until, $2) WHERE name = $1", name, until
        )

    async def insert_cooldown(self, deployment: str, until: datetime, reason: str) -> None:
        """A longer rest stays."""
        await self._database.execute(
            """
            INSERT INTO cooldowns (deployment, until, reason) VALUES ($1, $2, $3)
            ON CONFLICT (deployment) DO UPDATE SET until = excluded.until, reason = excluded.reason
            WHERE cooldowns.until < excluded.until
            """,
            deployment,
            until,
            reason,
        )

    async def select_cooldowns(self) -> Mapping[str, datetime]:
        rows = await self._database.fetch("SELECT deployment, until FROM cooldowns WHERE until > now()")
        return {row["deployment"]: row["until"] for row in rows}


def bucket_columns(buckets: Sequence[Bucket]) -> tuple[list[object], ...]:
    return (
        [bucket.name for bucket in buckets],
        [bucket.refilled_at for bucket in buckets],
        [bucket.requests for bucket in buckets],
        [bucket.tokens for bucket in buckets],
        [bucket.closed_until for bucket in buckets],
        [bucket.queue_until for bucket in buckets],
    )
