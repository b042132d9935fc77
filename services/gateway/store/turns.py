"""SQL of a request's way through its session: accepted, dispatched, in progress, cancelled, ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeAlias

from services.gateway.records import (
    Accept,
    Accepted,
    Cancelled,
    Ended,
    KnownKey,
    Progress,
    QueueFull,
    Request,
    SessionMissing,
    Turn,
)
from services.gateway.request_state import states_before
from services.gateway.store.rows import (
    ABANDON_COLUMNS,
    LOCKED_IN_ORDER,
    REQUEST_COLUMNS,
    TURN_COLUMNS,
    abandoned_of,
    request_of,
    turn_of,
)
from shared.contracts.results import ResultEnded
from shared.postgres import Connection, Database, Record

_ENDING = """
    state = i.state, started_at = COALESCE(r.started_at, i.started_at), ended_at = i.ended_at, end_heard_at = now(),
    result = i.result::jsonb, waiting_on = NULL, next_check_at = NULL, requested_owed_at = NULL, cancel_owed_at = NULL,
    abandon_owed_at = NULL
"""
"""Of a request r, from an ending i."""

# What is joined with nothing is kept out of the search, here and in the statements below: a plan made while the table
# is empty would look for the id among all rows of the account, of the session or in the state, and stay so for long.
_IS_OF_BOTH = "r.account_id || '' = i.account_id AND r.session_id || '' = i.session_id"
"""Whether a request r belongs to the account and the session that an ending i names."""

AcceptOutcome: TypeAlias = Accepted | KnownKey | SessionMissing | QueueFull


class TurnStore:
    """`check_after` is how long a request may stay silent before somebody looks after it."""

    def __init__(self, database: Database, *, session_queue_max: int, check_after: timedelta, grace: timedelta) -> None:
        self._database = database
        self._session_queue_max = session_queue_max
        self._check_after = check_after
        self._grace = grace

    async def insert_requests_unless_key_used(self, accepts: Sequence[Accept]) -> list[AcceptOutcome]:
        """Accept a batch of at most one request per session; each takes its session's turn if that is free.

        A session is locked before it is read, and PostgreSQL then reads the newest version of its row, so `running`,
        `next_seq` and `open_requests` are exact. A key that another replica inserted since the statement began
        violates the unique index: the caller then reads it in a new statement.
        """
        rows = await self._database.fetch(
            """
            WITH incoming AS (
                SELECT i.*, now() + make_interval(secs => deadline_seconds) AS deadline_at
                FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                            $8::text[], $9::bytea[], $10::integer[], $14::text[])
                    AS i(id, session_id, account_id, model, settings, input, metadata, idempotency_key, fingerprint,
                         deadline_seconds, traceparent)
            ), known AS (
                SELECT i.id, r.id AS known_id, r.fingerprint FROM incoming i
                JOIN LATERAL (
                    SELECT * FROM requests q
                    WHERE q.session_id = i.session_id AND q.idempotency_key = i.idempotency_key LIMIT 1
                ) r ON r.account_id = i.account_id
            ), locked AS (
                SELECT s.id FROM sessions s JOIN incoming i ON i.session_id = s.id AND i.account_id = s.account_id || ''
                WHERE s.id = ANY($2) AND COALESCE(s.deleted_at, 'infinity') = 'infinity'
                ORDER BY s.id FOR UPDATE OF s
            ), moved AS (
                UPDATE sessions s
                SET next_seq = s.next_seq + 1, open_requests = s.open_requests + 1,
                    running = COALESCE(s.running, i.id)
                FROM locked l JOIN incoming i ON i.session_id = l.id
                WHERE s.id = l.id AND s.open_requests < $11 AND i.id NOT IN (SELECT id FROM known)
                RETURNING i.id, s.next_seq - 1 AS seq, s.running = i.id AS has_turn, s.open_requests - 1 AS ahead,
                          COALESCE(i.model, s.model) AS model, s.instructions
            ), inserted AS (
                INSERT INTO requests (id, session_id, account_id, seq, state, model, settings, input, metadata,
                                      idempotency_key, fingerprint, accepted_at, deadline_at, dispatched_at,
                                      requested_owed_at, next_check_at, traceparent)
                SELECT i.id, i.session_id, i.account_id, m.seq, 'queued', m.model, i.settings::json, i.input::jsonb,
                       i.metadata::jsonb, i.idempotency_key, i.fingerprint, now(), i.deadline_at,
                       CASE WHEN m.has_turn THEN now() END, CASE WHEN m.has_turn THEN now() END,
                       CASE WHEN m.has_turn THEN LEAST(now() + $12::interval, i.deadline_at + $13::interval)
                            ELSE i.deadline_at END,
                       i.traceparent
                FROM moved m JOIN incoming i USING (id)
                RETURNING id, accepted_at, deadline_at
            )
            SELECT i.id, m.seq, m.has_turn, m.ahead, m.model, m.instructions, n.accepted_at, n.deadline_at,
                   k.known_id, k.fingerprint, l.id IS NOT NULL AS has_session
            FROM incoming i LEFT JOIN moved m USING (id) LEFT JOIN inserted n USING (id) LEFT JOIN known k USING (id)
            LEFT JOIN locked l ON l.id = i.session_id
            """,
            [accept.request_id for accept in accepts],
            [accept.session_id for accept in accepts],
            [accept.account_id for accept in accepts],
            [accept.model for accept in accepts],
            [accept.settings_json for accept in accepts],
            [accept.input_json for accept in accepts],
            [accept.metadata_json for accept in accepts],
            [accept.idempotency_key for accept in accepts],
            [accept.fingerprint for accept in accepts],
            [accept.deadline_seconds for accept in accepts],
            self._session_queue_max,
            self._check_after,
            self._grace,
            [accept.traceparent for accept in accepts],
        )
        row_by_id = {row["id"]: row for row in rows}
        return [_accept_outcome(accept, row_by_id[accept.request_id]) for accept in accepts]

    async def update_requests_ended_if_open(self, endings: Sequence[ResultEnded]) -> Ended:
        """End what is open, and pass each session's turn on.

        Most sessions have one open request: it ends by a single statement, for there is nobody to pass the turn to. The
        others take a transaction, in which all statements after the first see the locked rows.
        """
        requests = await self._end_alone(endings)
        alone = {request.id for request in requests}
        others = [ending for ending in endings if ending.request_id not in alone]
        if not others:
            return Ended(ended_ids=frozenset(alone), known_ids=frozenset(alone), requests=requests, dispatched=())
        session_ids = sorted({ending.session_id for ending in others})
        async with self._database.transaction() as connection:
            await _lock_sessions(connection, session_ids)
            rows = await self._end(connection, others)
            idle_ids = {row["idle_session_id"] for row in rows}
            waiting_ids = [session_id for session_id in session_ids if session_id not in idle_ids]
            dispatched = await self._pass_turns(connection, waiting_ids) if waiting_ids else ()
        return Ended(
            ended_ids=frozenset(row["id"] for row in rows if row["has_ended"]) | alone,
            known_ids=frozenset(row["id"] for row in rows if row["is_known"]) | alone,
            requests=requests,
            dispatched=dispatched,
        )

    async def update_turns_passed(self, session_ids: Sequence[str]) -> tuple[Turn, ...]:
        """Give the turn of these sessions on wherever nobody who is open has it."""
        async with self._database.transaction() as connection:
            await _lock_sessions(connection, sorted(session_ids))
            return await self._pass_turns(connection, session_ids)

    async def update_request_cancelled_if_open(self, request_id: str, account_id: str) -> Cancelled | None:
        """Record the first wish to cancel an open request; None where there is nothing to do."""
        async with self._database.transaction() as connection:
            # The session's lock keeps the turn from being passed to the request meanwhile.
            await connection.execute(
                """
                SELECT FROM sessions s JOIN requests r ON r.session_id = s.id
                WHERE r.id = $1 AND r.account_id || '' = $2 FOR UPDATE OF s
                """,
                request_id,
                account_id,
            )
            row = await connection.fetchrow(
                f"""
                UPDATE requests r
                SET cancel_requested_at = now(),
                    cancel_owed_at = CASE WHEN r.dispatched_at IS NOT NULL THEN now() END,
                    abandoned_at = COALESCE(r.abandoned_at, CASE WHEN r.dispatched_at IS NULL THEN now() END),
                    abandon_code = COALESCE(r.abandon_code, CASE WHEN r.dispatched_at IS NULL THEN 'cancelled' END),
                    abandon_owed_at = COALESCE(r.abandon_owed_at, CASE WHEN r.dispatched_at IS NULL THEN now() END),
                    next_check_at = CASE WHEN r.dispatched_at IS NULL THEN now() + $3::interval ELSE r.next_check_at END
                FROM sessions s
                WHERE r.id = $1 AND r.account_id || '' = $2 AND s.id = r.session_id
                  AND r.ended_at IS NULL AND r.cancel_requested_at IS NULL
                RETURNING {TURN_COLUMNS}, {ABANDON_COLUMNS}, r.dispatched_at IS NOT NULL AS was_dispatched
                """,  # noqa: S608 - the columns are this package's own
                request_id,
                account_id,
                self._check_after,
            )
        if row is None:
            return None
        return Cancelled(turn_of(row), None if row["was_dispatched"] else abandoned_of(row))

    async def update_requests_progressed_if_open(self, hints: Sequence[Progress]) -> set[str]:
        """The requests that these hints moved. A hint older than the last one heard changes nothing."""
        rows = await self._database.fetch(
            f"""
            UPDATE requests r
            SET state = CASE WHEN i.attempt >= 1 AND r.state = ANY($5) THEN 'in_progress' ELSE r.state END,
                started_at = CASE WHEN i.attempt >= 1 THEN COALESCE(r.started_at, i.at) ELSE r.started_at END,
                attempt = i.attempt, waiting_on = i.waiting_on, hinted_at = i.at, checks = 0,
                next_check_at = GREATEST(r.next_check_at, LEAST(now() + $6::interval, r.deadline_at + $7::interval))
            FROM unnest($1::text[], $2::integer[], $3::text[], $4::timestamptz[]) AS i(id, attempt, waiting_on, at)
            WHERE r.id = i.id AND r.ended_at IS NULL AND r.dispatched_at IS NOT NULL
              AND (r.hinted_at IS NULL OR r.hinted_at <= i.at) AND r.attempt <= i.attempt AND r.id IN {LOCKED_IN_ORDER}
            RETURNING r.id
            """,  # noqa: S608 - a constant of this package
            [hint.request_id for hint in hints],
            [hint.attempt for hint in hints],
            [hint.waiting_on for hint in hints],
            [hint.at for hint in hints],
            states_before("in_progress"),
            self._check_after,
            self._grace,
        )
        return {row["id"] for row in rows}

    async def _end_alone(self, endings: Sequence[ResultEnded]) -> tuple[Request, ...]:
        """End those that are the only open request of their session, as they are from now on; nothing else changes.

        `open_requests` is read under the lock, so it is exact, and none can be accepted before the turn is free.
        """
        rows = await self._database.fetch(
            f"""
            WITH incoming AS (
                SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],
                                     $6::timestamptz[], $7::text[])
                    AS i(id, account_id, session_id, state, started_at, ended_at, result)
            ), locked AS (
                SELECT s.id, s.open_requests FROM sessions s WHERE s.id = ANY($3) ORDER BY s.id FOR UPDATE
            ), ended AS (
                UPDATE requests r
                SET {_ENDING}
                FROM incoming i JOIN locked l ON l.id = i.session_id
                WHERE r.id = i.id AND {_IS_OF_BOTH} AND r.state || '' = ANY($8) AND l.open_requests = 1
                  AND r.id IN {LOCKED_IN_ORDER}
                RETURNING {REQUEST_COLUMNS}
            ), freed AS (
                UPDATE sessions s SET open_requests = 0, running = NULL FROM ended e WHERE s.id = e.session_id
            )
            SELECT * FROM ended
            """,  # noqa: S608 - the columns are this package's own
            *_ending_columns(endings),
            states_before("completed"),
        )
        ending_by_id = {ending.request_id: ending for ending in endings}
        return tuple(request_of(row, ending_by_id[row["id"]]) for row in rows)

    async def _end(self, connection: Connection, endings: Sequence[ResultEnded]) -> list[Record]:
        """Where nothing is open any more there is nobody to pass the turn to: it is free, and the session idle."""
        return await connection.fetch(
            f"""
            WITH incoming AS (
                SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::timestamptz[],
                                     $6::timestamptz[], $7::text[])
                    AS i(id, account_id, session_id, state, started_at, ended_at, result)
            ), ended AS (
                UPDATE requests r
                SET {_ENDING}
                FROM incoming i
                WHERE r.id = i.id AND {_IS_OF_BOTH} AND r.state || '' = ANY($8) AND r.id IN {LOCKED_IN_ORDER}
                RETURNING r.id, r.session_id
            ), counted AS (
                UPDATE sessions s
                SET open_requests = s.open_requests - e.count,
                    running = CASE WHEN s.open_requests > e.count THEN s.running END
                FROM (SELECT session_id, count(*)::integer AS count FROM ended GROUP BY session_id) e
                WHERE s.id = e.session_id
                RETURNING s.id, s.open_requests
            )
            SELECT i.id, e.id IS NOT NULL AS has_ended, r.id IS NOT NULL AS is_known, c.id AS idle_session_id
            FROM incoming i LEFT JOIN ended e ON e.id = i.id
            LEFT JOIN counted c ON c.id = e.session_id AND c.open_requests = 0
            LEFT JOIN requests r ON r.id = i.id AND {_IS_OF_BOTH}
            """,  # noqa: S608 - the columns are this package's own
            *_ending_columns(endings),
            states_before("completed"),
        )

    async def _pass_turns(self, connection: Connection, session_ids: Sequence[str]) -> tuple[Turn, ...]:
        """The next by seq that still wants to run gets the turn of each session whose holder has ended."""
        rows = await connection.fetch(
            f"""
            WITH following AS (
                SELECT s.id AS session_id, (
                    SELECT q.id FROM requests q
                    WHERE q.session_id = s.id AND q.seq > COALESCE(holder.seq, 0) AND q.state = 'queued'
                      AND q.dispatched_at IS NULL AND q.cancel_requested_at IS NULL AND q.abandoned_at IS NULL
                    ORDER BY q.seq LIMIT 1
                ) AS request_id
                FROM sessions s LEFT JOIN requests holder ON holder.id = s.running
                WHERE s.id = ANY($1) AND (holder.id IS NULL OR holder.ended_at IS NOT NULL)
            ), passed AS (
                UPDATE sessions s SET running = f.request_id FROM following f
                WHERE s.id = f.session_id AND s.running IS DISTINCT FROM f.request_id
            )
            UPDATE requests r
            SET dispatched_at = now(), requested_owed_at = now(),
                next_check_at = LEAST(now() + $2::interval, r.deadline_at + $3::interval)
            FROM following f JOIN sessions s ON s.id = f.session_id
            WHERE r.id = f.request_id AND r.abandoned_at IS NULL
            RETURNING {TURN_COLUMNS}
            """,  # noqa: S608 - the columns are this package's own
            session_ids,
            self._check_after,
            self._grace,
        )
        return tuple(turn_of(row) for row in rows)


def _ending_columns(endings: Sequence[ResultEnded]) -> tuple[list[object], ...]:
    """What `incoming` is made of."""
    return (
        [ending.request_id for ending in endings],
        [ending.account_id for ending in endings],
        [ending.session_id for ending in endings],
        [ending.status for ending in endings],
        [ending.started_at for ending in endings],
        [ending.ended_at for ending in endings],
        [ending.model_dump_json() for ending in endings],
    )


async def _lock_sessions(connection: Connection, session_ids: Sequence[str]) -> None:
    await connection.execute("SELECT FROM sessions WHERE id = ANY($1) ORDER BY id FOR UPDATE", session_ids)


def _accept_outcome(accept: Accept, row: Record) -> AcceptOutcome:
    if row["known_id"] is not None:
        return KnownKey(row["known_id"], row["fingerprint"])
    if row["seq"] is None:
        return QueueFull() if row["has_session"] else SessionMissing()
    turn = Turn(
        request_id=accept.request_id,
        account_id=accept.account_id,
        session_id=accept.session_id,
        seq=row["seq"],
        input_json=accept.input_json,
        settings_json=accept.settings_json,
        model=row["model"],
        instructions=row["instructions"],
        accepted_at=row["accepted_at"],
        deadline_at=row["deadline_at"],
        traceparent=accept.traceparent,
    )
    return Accepted(turn, has_turn=row["has_turn"], ahead=row["ahead"])
