"""SQL of what a worker writes about its running tasks, all of it under the fence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from services.orchestrator.limiter import Limits
from services.orchestrator.records import AttemptEnd, AttemptStart, Conclusion
from shared.postgres import Connection, Database

# `|| ''` keeps the state out of the search: a plan made while the table is small would look for the task among all that
# run, by their partial index.
_RUNS = "tasks.state || '' = 'running'"
_ENDS = """
    unnest($1::text[], $2::int[], $3::int[], $4::text[], $5::timestamptz[], $6::int[], $7::text[], $8::float8[],
           $9::float8[], $10::text[], $11::bigint[])
    AS stop (request_id, attempt, fence, outcome, ended_at, http_status, error_code, retry_after_seconds,
             first_token_seconds, usage, cost_microcents)
"""
_SET_ENDED = """
    UPDATE attempts SET outcome = stop.outcome, ended_at = greatest(stop.ended_at, attempts.started_at),
        http_status = stop.http_status, error_code = stop.error_code, retry_after_seconds = stop.retry_after_seconds,
        first_token_seconds = stop.first_token_seconds, usage = stop.usage::json,
        cost_microcents = stop.cost_microcents
"""


class AttemptStore:
    """Attempts, and the tasks they belong to while those run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_attempts_if_fence(self, connection: Connection, starts: Sequence[AttemptStart]) -> set[str]:
        """The requests whose attempt may start: permitted, running under this fence, and next in number."""
        rows = await connection.fetch(
            f"""
            WITH asked AS (
                SELECT * FROM unnest($1::text[], $2::int[], $3::int[], $4::text[], $5::text[], $6::text[], $7::int[],
                                     $8::text[], $9::timestamptz[])
                AS asked (request_id, fence, attempt, deployment, provider, upstream_model, tokens, decision_id,
                          started_at)
            ), moved AS (
                UPDATE tasks SET attempts = asked.attempt, tokens = asked.tokens,
                    decision_id = coalesce(tasks.decision_id, asked.decision_id)
                FROM asked
                WHERE tasks.request_id = asked.request_id AND tasks.fence = asked.fence
                    AND {_RUNS}
                    AND tasks.attempts = asked.attempt - 1
                    AND coalesce(tasks.decision_id, asked.decision_id) IS NOT NULL
                RETURNING tasks.request_id
            ), added AS (
                INSERT INTO attempts (request_id, attempt, fence, deployment, provider, upstream_model,
                                      tokens_reserved, started_at)
                SELECT request_id, attempt, fence, deployment, provider, upstream_model, tokens, started_at
                FROM asked JOIN moved USING (request_id)
            )
            SELECT request_id FROM moved
            """,  # noqa: S608 - a constant of this file
            [start.request_id for start in starts],
            [start.fence for start in starts],
            [start.attempt for start in starts],
            [start.deployment for start in starts],
            [start.provider for start in starts],
            [start.upstream_model for start in starts],
            [start.tokens for start in starts],
            [start.decision_id for start in starts],
            [start.started_at for start in starts],
        )
        return {row["request_id"] for row in rows}

    async def update_attempts_ended_if_fence(self, connection: Connection, ends: Sequence[AttemptEnd]) -> None:
        await connection.execute(
            f"""
            {_SET_ENDED} FROM {_ENDS}
            WHERE attempts.request_id = stop.request_id AND attempts.attempt = stop.attempt
                AND attempts.fence = stop.fence AND attempts.ended_at IS NULL
            """,
            *_end_columns(ends),
        )

    async def update_tasks_concluded_if_fence(
        self, conclusions: Sequence[Conclusion], limits: Mapping[str, Limits]
    ) -> set[str]:
        """End attempts, move their tasks and settle the buckets in one statement; the requests that moved."""
        ends = [conclusion.end for conclusion in conclusions if conclusion.end]
        rows = await self._database.fetch(
            f"""
            WITH asked AS (
                SELECT * FROM unnest($12::text[], $13::int[], $14::text[], $15::text[], $16::text[], $17::text[],
                                     $18::timestamptz[], $19::text[], $20::int[])
                AS asked (request_id, fence, state, outcome, ending, waiting_on, due_at, decision_id, tokens)
            ), moved AS (
                UPDATE tasks SET state = asked.state, outcome = asked.outcome, ending = asked.ending::json,
                    waiting_on = asked.waiting_on, worker_id = NULL,
                    -- Who was cancelled meanwhile waits for nothing: the next claim ends it.
                    due_at = CASE WHEN asked.due_at IS NOT NULL AND tasks.cancel_requested_at IS NOT NULL
                                  THEN now() ELSE asked.due_at END,
                    waiting_since = CASE WHEN asked.due_at IS NOT NULL THEN now() END,
                    decision_id = coalesce(tasks.decision_id, asked.decision_id),
                    tokens = greatest(tasks.tokens, asked.tokens),
                    command = CASE WHEN asked.state <> 'finished' THEN tasks.command END,
                    finished_at = CASE WHEN asked.state = 'finished' THEN now() END
                FROM asked
                WHERE tasks.request_id = asked.request_id AND tasks.fence = asked.fence
                    AND {_RUNS}
                RETURNING tasks.request_id
            ), stopped AS (
                {_SET_ENDED} FROM {_ENDS} JOIN moved USING (request_id)
                WHERE attempts.request_id = stop.request_id AND attempts.attempt = stop.attempt
                    AND attempts.fence = stop.fence AND attempts.ended_at IS NULL
            ), settled AS (
                -- What a provider said and used is true whoever owns the task by now.
                UPDATE buckets SET tokens = least(settling.capacity, buckets.tokens + settling.tokens_back),
                    closed_until = greatest(buckets.closed_until, settling.closed_until)
                FROM unnest($21::text[], $22::float8[], $23::float8[], $24::timestamptz[])
                    AS settling (name, tokens_back, capacity, closed_until)
                WHERE buckets.name = settling.name
            ), paused AS (
                INSERT INTO waits (request_id, after_attempt, reason, since, until)
                SELECT pause.* FROM unnest($25::text[], $26::int[], $27::text[], $28::timestamptz[], $29::timestamptz[])
                    AS pause (request_id, after_attempt, reason, since, until)
                JOIN moved USING (request_id)
                ON CONFLICT (request_id, after_attempt, reason) DO UPDATE SET until = excluded.until
            )
            SELECT request_id FROM moved
            """,  # noqa: S608 - constants of this file
            *_end_columns(ends),
            [conclusion.request_id for conclusion in conclusions],
            [conclusion.fence for conclusion in conclusions],
            [conclusion.state for conclusion in conclusions],
            [conclusion.ending.status if conclusion.ending else None for conclusion in conclusions],
            [conclusion.ending.model_dump_json() if conclusion.ending else None for conclusion in conclusions],
            [conclusion.wait.waiting_on if conclusion.wait else None for conclusion in conclusions],
            [conclusion.wait.until if conclusion.wait else None for conclusion in conclusions],
            [conclusion.decision_id for conclusion in conclusions],
            [conclusion.tokens for conclusion in conclusions],
            *_settling_columns(ends, limits),
            *_pause_columns(conclusions),
        )
        return {row["request_id"] for row in rows}


def _end_columns(ends: Sequence[AttemptEnd]) -> tuple[list[object], ...]:
    records = [end.record for end in ends]
    return (
        [end.request_id for end in ends],
        [record.attempt for record in records],
        [end.fence for end in ends],
        [record.outcome for record in records],
        [record.ended_at for record in records],
        [record.http_status for record in records],
        [record.error_code for record in records],
        [record.retry_after_seconds for record in records],
        [record.first_token_seconds for record in records],
        [record.usage.model_dump_json() if record.usage else None for record in records],
        [record.cost_microcents for record in records],
    )


def _settling_columns(ends: Sequence[AttemptEnd], limits: Mapping[str, Limits]) -> tuple[list[object], ...]:
    """One row for each bucket that changes, in the order in which buckets are locked everywhere."""
    back: dict[str, int] = defaultdict(int)
    closed: dict[str, datetime | None] = defaultdict(lambda: None)
    for end in ends:
        back[end.domain] += end.tokens_back
        if end.closed_until is not None:
            closed[end.domain] = max(end.closed_until, closed[end.domain] or end.closed_until)
    capacity = {name: limits[name].tokens_per_minute for name in back}
    names = sorted(name for name in back if closed[name] is not None or (capacity[name] is not None and back[name]))
    return (
        list(names),
        [back[name] for name in names],
        [capacity[name] for name in names],
        [closed[name] for name in names],
    )


def _pause_columns(conclusions: Sequence[Conclusion]) -> tuple[list[object], ...]:
    by_key = {
        (conclusion.request_id, pause.after_attempt, pause.reason): pause
        for conclusion in conclusions
        for pause in conclusion.pauses
    }
    return (
        [request_id for request_id, _, _ in by_key],
        [after_attempt for _, after_attempt, _ in by_key],
        [reason for _, _, reason in by_key],
        [pause.since for pause in by_key.values()],
        [pause.until for pause in by_key.values()],
    )
