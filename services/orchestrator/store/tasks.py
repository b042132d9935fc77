"""SQL of tasks that come in, stand still, and are claimed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from services.orchestrator.limiter import Bucket
from services.orchestrator.records import NewTask
from services.orchestrator.store.buckets import bucket_columns
from services.orchestrator.store.rows import tasks_with_ledgers
from services.orchestrator.task import Task
from shared.contracts.gateway import SessionRequested
from shared.contracts.orchestrator import SessionEnded
from shared.postgres import Connection, Database, Record


@dataclass(frozen=True, slots=True)
class Arrival:
    """What is already known when a command arrives."""

    known: bool
    ending: SessionEnded | None
    """Of a repeat whose task has finished."""
    superseded: bool
    """A later turn of the session is known."""
    earlier: tuple[str, ...]
    """Unfinished tasks of earlier turns of the session."""


class TaskStore:
    """Rows of `tasks`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def select_arrivals(self, commands: Sequence[SessionRequested]) -> dict[str, Arrival]:
        rows = await self._database.fetch(
            """
            SELECT arrived.request_id, known.request_id IS NOT NULL AS known, known.ending,
                EXISTS (SELECT FROM tasks later
                        WHERE later.session_id = arrived.session_id AND later.seq > arrived.seq) AS superseded,
                ARRAY(SELECT earlier.request_id FROM tasks earlier
                      WHERE earlier.session_id = arrived.session_id AND earlier.seq < arrived.seq
                          AND earlier.state <> 'finished') AS earlier
            FROM unnest($1::text[], $2::text[], $3::int[]) AS arrived (request_id, session_id, seq)
            LEFT JOIN tasks known ON known.request_id = arrived.request_id
            """,
            [command.request_id for command in commands],
            [command.session_id for command in commands],
            [command.seq for command in commands],
        )
        return {row["request_id"]: _arrival(row) for row in rows}

    async def insert_tasks_if_absent(
        self, connection: Connection, tasks: Sequence[NewTask], buckets: Sequence[Bucket] = ()
    ) -> set[str]:
        """The requests inserted. Not those that somebody else inserted first, nor, where a worker is named whose
        lease has ended, those that it would run. `buckets` are new levels of rows that this transaction has locked:
        what all these calls cost, written along to save a round trip."""
        starts = [task.start for task in tasks if task.start]
        rows = await connection.fetch(
            """
            WITH asked AS (
                SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[],
                                     $8::int[], $9::text[], $10::text[], $11::text[], $12::timestamptz[],
                                     $13::timestamptz[], $14::text[])
                AS asked (request_id, account_id, session_id, seq, state, outcome, command, tokens, decision_id,
                          worker_id, waiting_on, due_at, deadline_at, ending)
            ), added AS (
                INSERT INTO tasks (request_id, account_id, session_id, seq, state, outcome, command, tokens,
                                   decision_id, fence, worker_id, attempts, waiting_on, waiting_since, due_at,
                                   deadline_at, ending, finished_at)
                SELECT request_id, account_id, session_id, seq, state, outcome, command::json, tokens,
                       decision_id, 1, worker_id, CASE WHEN worker_id IS NULL THEN 0 ELSE 1 END, waiting_on,
                       CASE WHEN due_at IS NOT NULL THEN now() END, due_at, deadline_at, ending::json,
                       CASE WHEN state = 'finished' THEN now() END
                FROM asked
                WHERE worker_id IS NULL
                    OR EXISTS (SELECT FROM workers WHERE workers.id = asked.worker_id AND expires_at > now())
                ORDER BY request_id
                ON CONFLICT (request_id) DO NOTHING
                RETURNING request_id
            ), started AS (
                INSERT INTO attempts (request_id, attempt, fence, deployment, provider, upstream_model,
                                      tokens_reserved, started_at)
                SELECT request_id, 1, 1, deployment, provider, upstream_model, tokens, started_at
                FROM unnest($15::text[], $16::text[], $17::text[], $18::text[], $19::int[], $20::timestamptz[])
                    AS start (request_id, deployment, provider, upstream_model, tokens, started_at)
                JOIN added USING (request_id)
            ), debited AS (
                UPDATE buckets SET refilled_at = level.refilled_at, requests = level.requests, tokens = level.tokens,
                    closed_until = level.closed_until, queue_until = level.queue_until
                FROM unnest($21::text[], $22::timestamptz[], $23::float8[], $24::float8[], $25::timestamptz[],
                            $26::timestamptz[])
                    AS level (name, refilled_at, requests, tokens, closed_until, queue_until)
                WHERE buckets.name = level.name
            )
            SELECT request_id FROM added
            """,
            [task.request_id for task in tasks],
            [task.source.account_id for task in tasks],
            [task.source.session_id for task in tasks],
            [task.source.seq for task in tasks],
            [task.state for task in tasks],
            [task.ending.status if task.ending else None for task in tasks],
            [task.command_json for task in tasks],
            [task.tokens for task in tasks],
            [task.decision_id for task in tasks],
            [task.worker_id for task in tasks],
            [task.wait.waiting_on if task.wait else None for task in tasks],
            [task.wait.until if task.wait else None for task in tasks],
            [task.deadline_at for task in tasks],
            [task.ending.model_dump_json() if task.ending else None for task in tasks],
            [start.request_id for start in starts],
            [start.deployment for start in starts],
            [start.provider for start in starts],
            [start.upstream_model for start in starts],
            [start.tokens for start in starts],
            [start.started_at for start in starts],
            *bucket_columns(buckets),
        )
        return {row["request_id"] for row in rows}

    async def update_tasks_claimed_if_due_or_lost(
        self, worker_id: str, limit: int, workers_lost_max: int, *, alone_from: int
    ) -> list[Task]:
        """Take due tasks and those of lost workers, under a new fence; at most one that must run alone."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_CLAIM, worker_id, limit, workers_lost_max, alone_from)
            at = max((row["claimed_at"] for row in rows), default=None)
            return await tasks_with_ledgers(connection, rows, at=at, open_outcome="worker_lost") if at else []

    async def select_next_due(self) -> datetime | None:
        """When the next standing task is due."""
        due: datetime | None = await self._database.fetchval(
            "SELECT min(due_at) FROM tasks WHERE state IN ('waiting', 'backing_off')"
        )
        return due

    async def select_count_waiting(self, limit: int) -> int:
        """How many tasks wait for a slot; counted up to `limit`."""
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM (SELECT FROM tasks WHERE state = 'waiting' LIMIT $1) AS waiting", limit
        )
        return count

    async def select_counts(self) -> dict[str, int]:
        """Unfinished tasks by state, and attempts in flight."""
        rows = await self._database.fetch(
            """
            SELECT state, count(*) FROM tasks WHERE state <> 'finished' GROUP BY state
            UNION ALL SELECT 'attempts', count(*) FROM attempts WHERE ended_at IS NULL
            """
        )
        return {row["state"]: row["count"] for row in rows}


def _arrival(row: Record) -> Arrival:
    ending = None if row["ending"] is None else SessionEnded.model_validate_json(row["ending"])
    return Arrival(row["known"], ending, row["superseded"], tuple(row["earlier"]))


_CLAIM = """
    WITH me AS (
        SELECT id FROM workers WHERE id = $1 AND expires_at > now()
    ), lost AS (
        SELECT tasks.request_id, tasks.workers_lost + 1 AS workers_lost
        FROM workers JOIN tasks ON tasks.worker_id = workers.id AND tasks.state = 'running'
        WHERE workers.expires_at <= now() AND EXISTS (SELECT FROM me)
        ORDER BY tasks.deadline_at LIMIT $2 FOR UPDATE OF tasks SKIP LOCKED
    ), due AS (
        SELECT request_id, workers_lost FROM tasks
        WHERE state IN ('waiting', 'backing_off') AND due_at <= now() AND EXISTS (SELECT FROM me)
        ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ), found AS (
        SELECT request_id, true AS was_lost, workers_lost FROM lost
        UNION ALL SELECT request_id, false, workers_lost FROM due
    ), picked AS (
        (SELECT request_id, was_lost FROM found WHERE workers_lost NOT BETWEEN $4 AND $3 - 1 LIMIT $2)
        UNION ALL
        -- One suspect at a time: it runs alone, so that it cannot take others with it once more.
        (SELECT request_id, was_lost FROM found WHERE workers_lost BETWEEN $4 AND $3 - 1 LIMIT 1)
    ), closed AS (
        UPDATE attempts SET outcome = 'worker_lost', ended_at = now()
        FROM picked WHERE picked.was_lost AND attempts.request_id = picked.request_id AND attempts.ended_at IS NULL
    ), waited AS (
        INSERT INTO waits (request_id, after_attempt, reason, since, until)
        SELECT request_id, attempts, waiting_on, waiting_since, now()
        FROM tasks JOIN picked USING (request_id) WHERE waiting_on IS NOT NULL
        ON CONFLICT (request_id, after_attempt, reason) DO UPDATE SET until = excluded.until
    )
    UPDATE tasks SET state = 'running', worker_id = $1, fence = tasks.fence + 1,
        workers_lost = tasks.workers_lost + picked.was_lost::int,
        waiting_on = NULL, waiting_since = NULL, due_at = NULL
    FROM picked JOIN tasks old ON old.request_id = picked.request_id
    WHERE tasks.request_id = picked.request_id
    RETURNING tasks.request_id, tasks.command, tasks.fence, tasks.tokens, tasks.decision_id, tasks.workers_lost,
        tasks.attempts, tasks.cancel_requested_at, old.waiting_on AS waited_for, now() AS claimed_at
"""
