"""SQL of tasks that are ended by somebody other than their runner, and of the publishes that endings owe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.orchestrator.store.rows import tasks_with_ledgers
from services.orchestrator.task import State, Task, too_large
from shared.contracts.content import WaitingOn
from shared.contracts.message import Message
from shared.contracts.orchestrator import SessionEnded
from shared.postgres import Connection, Database

_COLUMNS = """
    request_id, state, command, ending, fence, tokens, decision_id, workers_lost, attempts, cancel_requested_at,
    waiting_on AS waited_for, waiting_since
"""


@dataclass(frozen=True, slots=True)
class LockedTask:
    """A task under a row lock: `task` while it is unfinished, `ending` once it is."""

    request_id: str
    state: State
    task: Task | None
    ending: SessionEnded | None
    waiting_on: WaitingOn | None
    waiting_since: datetime | None


class EndingStore:
    """Rows of `tasks` at their end."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def select_overdue(self, limit: int) -> list[str]:
        """Tasks that stand still past their deadline."""
        rows = await self._database.fetch(
            """
            SELECT request_id FROM tasks
            WHERE state IN ('waiting', 'backing_off') AND deadline_at <= now() ORDER BY deadline_at LIMIT $1
            """,
            limit,
        )
        return [row["request_id"] for row in rows]

    async def select_tasks_for_update(
        self, connection: Connection, request_ids: Sequence[str], *, at: datetime
    ) -> dict[str, LockedTask]:
        rows = await connection.fetch(
            f"SELECT {_COLUMNS} FROM tasks WHERE request_id = ANY($1) ORDER BY request_id FOR UPDATE",  # noqa: S608 - constant
            sorted(request_ids),
        )
        unfinished = [row for row in rows if row["command"] is not None]
        tasks = await tasks_with_ledgers(connection, unfinished, at=at, open_outcome="cancelled")
        by_id = {task.request_id: task for task in tasks}
        return {
            row["request_id"]: LockedTask(
                row["request_id"],
                row["state"],
                by_id.get(row["request_id"]),
                None if row["ending"] is None else SessionEnded.model_validate_json(row["ending"]),
                row["waited_for"],
                row["waiting_since"],
            )
            for row in rows
        }

    async def update_tasks_finished_if_unfinished(
        self, connection: Connection, endings: Sequence[SessionEnded]
    ) -> None:
        """End tasks that this transaction has locked; the fence moves on, so a runner's later word is refused."""
        await connection.execute(
            """
            WITH asked AS (
                SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS asked (request_id, outcome, ending)
            ), closed AS (
                UPDATE attempts SET outcome = 'cancelled', ended_at = now()
                FROM asked
                WHERE attempts.request_id = asked.request_id AND attempts.request_id = ANY($1)
                    AND attempts.ended_at IS NULL
            )
            UPDATE tasks SET state = 'finished', outcome = asked.outcome, ending = asked.ending::json, command = NULL,
                fence = fence + 1, worker_id = NULL, waiting_on = NULL, waiting_since = NULL, due_at = NULL,
                finished_at = now()
            FROM asked WHERE tasks.request_id = asked.request_id AND tasks.state || '' <> 'finished'
            """,
            [ending.request_id for ending in endings],
            [ending.status for ending in endings],
            [ending.model_dump_json() for ending in endings],
        )

    async def update_cancel_requested_if_running(self, connection: Connection, request_ids: Sequence[str]) -> None:
        await connection.execute(
            """
            UPDATE tasks SET cancel_requested_at = coalesce(cancel_requested_at, now())
            WHERE request_id = ANY($1) AND state || '' = 'running'
            """,
            list(request_ids),
        )

    async def select_endings_owed(self, limit: int) -> list[Message]:
        rows = await self._database.fetch(
            """
            SELECT ending FROM tasks
            WHERE state = 'finished' AND ended_published_at IS NULL AND finished_at < now() - interval '5 seconds'
            ORDER BY finished_at LIMIT $1
            """,
            limit,
        )
        return [SessionEnded.model_validate_json(row["ending"]) for row in rows]

    async def update_endings_published(self, messages: Sequence[Message]) -> None:
        await self._database.execute(
            """
            UPDATE tasks SET ended_published_at = now()
            WHERE ended_published_at IS NULL AND request_id IN (
                SELECT request_id FROM tasks WHERE request_id = ANY($1) ORDER BY request_id FOR UPDATE
            )
            """,
            [message.subject for message in messages],
        )

    async def update_endings_too_large_if_owed(self, messages: Sequence[Message]) -> list[Message]:
        """Endings that the broker refuses for their size fail, while nobody has heard of them; those that now hold."""
        smaller = {
            message.subject: ending
            for message in messages
            if isinstance(message, SessionEnded) and (ending := too_large(message)) is not None
        }
        rows = await self._database.fetch(
            """
            UPDATE tasks SET outcome = smaller.outcome, ending = smaller.ending::json
            FROM unnest($1::text[], $2::text[], $3::text[]) AS smaller (request_id, outcome, ending)
            WHERE tasks.request_id = smaller.request_id AND tasks.state = 'finished'
                AND tasks.ended_published_at IS NULL
            RETURNING tasks.request_id
            """,
            list(smaller),
            [ending.status for ending in smaller.values()],
            [ending.model_dump_json() for ending in smaller.values()],
        )
        return [smaller[row["request_id"]] for row in rows]

    async def delete_tasks_if_published(self, older_than_days: int, limit: int) -> int:
        """Forget tasks whose ending results has had for long; a command that old is past its deadline anyway."""
        count: int = await self._database.fetchval(
            """
            WITH gone AS (
                DELETE FROM tasks WHERE request_id IN (
                    SELECT request_id FROM tasks
                    WHERE finished_at < now() - make_interval(days => $1) AND ended_published_at IS NOT NULL LIMIT $2
                ) RETURNING request_id
            ), attempts_gone AS (
                DELETE FROM attempts USING gone WHERE attempts.request_id = gone.request_id
            ), waits_gone AS (
                DELETE FROM waits USING gone WHERE waits.request_id = gone.request_id
            )
            SELECT count(*) FROM gone
            """,
            older_than_days,
            limit,
        )
        return count
