"""SQL of the worker leases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from shared.postgres import Database


@dataclass(frozen=True, slots=True)
class HeldTask:
    """A running task as the database has it."""

    request_id: str
    fence: int
    cancel_requested: bool


class WorkerStore:
    """Rows of `workers`, and the running tasks that hang on them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_worker(self, worker_id: str, lease_seconds: float) -> None:
        await self._database.execute(
            "INSERT INTO workers (id, expires_at) VALUES ($1, now() + $2)", worker_id, timedelta(seconds=lease_seconds)
        )

    async def update_lease_if_unexpired(self, worker_id: str, lease_seconds: float) -> bool:
        """False: the lease has ended, and with it this worker id."""
        tag = await self._database.execute(
            "UPDATE workers SET expires_at = now() + $2 WHERE id = $1 AND expires_at > now()",
            worker_id,
            timedelta(seconds=lease_seconds),
        )
        return tag == "UPDATE 1"

    async def select_held(self, worker_id: str) -> list[HeldTask]:
        rows = await self._database.fetch(
            """
            SELECT request_id, fence, cancel_requested_at IS NOT NULL AS cancel_requested
            FROM tasks WHERE worker_id = $1 AND state = 'running'
            """,
            worker_id,
        )
        return [HeldTask(**dict(row)) for row in rows]

    async def update_tasks_handed_back_if_held(self, worker_id: str, request_ids: Sequence[str] | None = None) -> int:
        """Give running tasks of this worker (all of them by default) to whoever claims next, at once."""
        rows = await self._database.fetch(
            """
            WITH back AS (
                UPDATE tasks SET state = 'waiting', worker_id = NULL, fence = fence + 1,
                    waiting_on = 'capacity', waiting_since = now(), due_at = now()
                WHERE worker_id = $1 AND state = 'running' AND request_id IN (
                    SELECT request_id FROM tasks
                    WHERE worker_id = $1 AND state = 'running' AND ($2::text[] IS NULL OR request_id = ANY($2))
                    ORDER BY request_id FOR UPDATE
                )
                RETURNING request_id
            ), closed AS (
                UPDATE attempts SET outcome = 'handed_back', ended_at = now()
                FROM back WHERE attempts.request_id = back.request_id AND attempts.ended_at IS NULL
            )
            SELECT request_id FROM back
            """,
            worker_id,
            request_ids,
        )
        return len(rows)

    async def update_lease_ended(self, worker_id: str) -> None:
        """The worker leaves of its own accord: whatever it still holds can be claimed at once."""
        await self._database.execute(
            "UPDATE workers SET expires_at = now() WHERE id = $1 AND expires_at > now()", worker_id
        )

    async def delete_workers_if_gone(self) -> None:
        await self._database.execute(
            """
            DELETE FROM workers WHERE expires_at < now() - interval '1 hour'
                AND NOT EXISTS (SELECT FROM tasks WHERE worker_id = workers.id AND state = 'running')
            """
        )
