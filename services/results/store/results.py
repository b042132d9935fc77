"""SQL of the endings: the first one is the result, the others are kept as late; and what is read of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

from pydantic import TypeAdapter

from services.results.event_log import RequestLog
from services.results.proposal import Proposal
from services.results.schemas import Turn
from services.results.store.logs import event_columns, head_columns
from shared.contracts.content import Failure, Item, Outcome, Usage
from shared.contracts.orchestrator import AttemptRecord, WaitRecord
from shared.contracts.results import RESULT_BY_STATUS, LateEnding, Ledger, ResultEnded
from shared.postgres import Connection, Database, Record

LATE_MAX: Final = 16
"""LateEnding proposals kept of one request; they differ only where a worker was lost."""
PAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""A page of the transcript, or of a lookup, ends with the turn that passes it."""

_ITEMS: Final = TypeAdapter(tuple[Item, ...])
_ATTEMPTS: Final = TypeAdapter(tuple[AttemptRecord, ...])
_WAITS: Final = TypeAdapter(tuple[WaitRecord, ...])


Ending: TypeAlias = tuple[RequestLog, Proposal, ResultEnded]
"""A log that was closed by a proposal, and the result that this becomes."""

_ENDINGS: Final = """
    unnest($1::text[], $2::text[], $3::text[], $4::int[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
           $10::int[], $11::text[], $12::text[])
    AS ending (request_id, account_id, session_id, seq, status, ended_by, digest, message, input, turn_bytes,
               attempts, waits)
"""
_HEADS: Final = """
    unnest($13::text[], $14::int[], $15::text[], $16::bigint[], $17::bigint[], $18::bigint[], $19::bool[])
    AS head (request_id, attempt, epoch, visible_cursor, stored_cursor, log_bytes, closed)
"""
_INSERT_RESULTS: Final = f"""
    INSERT INTO results (request_id, account_id, session_id, seq, status, ended_by, digest, message, input,
                         turn_bytes, attempts, waits)
    SELECT request_id, account_id, session_id, seq, status, ended_by, digest, message::json, input::json,
           turn_bytes, attempts::json, waits::json
    FROM {_ENDINGS}
"""  # noqa: S608 - constants of this file
_INSERT_EVENTS: Final = """
    INSERT INTO log_events (request_id, cursor, type, at, text, data)
    SELECT request_id, cursor, type, at, text, data::json
    FROM unnest($20::text[], $21::bigint[], $22::text[], $23::timestamptz[], $24::text[], $25::text[])
        AS event (request_id, cursor, type, at, text, data)
"""


@dataclass(frozen=True)
class Stored:
    """A stored ending, and the digest of the proposal that won."""

    digest: str
    result: ResultEnded


class ResultStore:
    """Rows of `results` and `late_proposals`; a result is inserted together with the end of its log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_endings_if_unheard(self, endings: Sequence[Ending]) -> set[str]:
        """Insert head, log and result of each request that has no head yet; the ids of those.

        The heads are inserted first and in the order of their ids, as every writer does, and nothing is waited for
        after that. A result without a head there is none, so none can be in the way.
        """
        inserted = await self._database.fetch(
            f"""
            WITH heads AS (
                INSERT INTO request_logs (request_id, account_id, session_id, seq, attempt, epoch, visible_cursor,
                                          stored_cursor, log_bytes, closed)
                SELECT request_id, account_id, session_id, seq, attempt, epoch, visible_cursor, stored_cursor,
                       log_bytes, closed
                FROM {_HEADS} JOIN {_ENDINGS} USING (request_id)
                ORDER BY request_id
                ON CONFLICT (request_id) DO NOTHING
                RETURNING request_id
            ), ended AS (
                {_INSERT_RESULTS} JOIN heads USING (request_id)
            ), added AS (
                {_INSERT_EVENTS} JOIN heads USING (request_id)
            )
            SELECT request_id FROM heads
            """,  # noqa: S608 - constants of this file
            *_ending_columns(endings),
        )
        return {row["request_id"] for row in inserted}

    async def insert_results_if_absent(self, connection: Connection, endings: Sequence[Ending]) -> set[str]:
        """The ids of the requests that ended by this, whose logs are closed with it; the others had ended before."""
        inserted = await connection.fetch(
            f"""
            WITH ended AS (
                {_INSERT_RESULTS}
                ON CONFLICT (request_id) DO NOTHING
                RETURNING request_id
            ), added AS (
                {_INSERT_EVENTS} JOIN ended USING (request_id)
            ), closed AS (
                UPDATE request_logs AS log
                SET attempt = head.attempt, epoch = head.epoch, visible_cursor = head.visible_cursor,
                    stored_cursor = head.stored_cursor, log_bytes = head.log_bytes, closed = head.closed
                FROM {_HEADS} JOIN ended USING (request_id)
                WHERE log.request_id = head.request_id AND NOT log.closed
            )
            SELECT request_id FROM ended
            """,  # noqa: S608 - constants of this file
            *_ending_columns(endings),
        )
        return {row["request_id"] for row in inserted}

    async def select_stored(self, connection: Connection, request_ids: Sequence[str]) -> dict[str, Stored]:
        rows = await connection.fetch(
            "SELECT request_id, digest, status, message FROM results WHERE request_id = ANY($1::text[])", request_ids
        )
        return {row["request_id"]: Stored(row["digest"], _result(row)) for row in rows}

    async def insert_late_if_absent(self, connection: Connection, late: Sequence[Proposal]) -> int:
        """How many were new. Past the bound of a request nothing more is kept."""
        tag = await connection.execute(
            """
            INSERT INTO late_proposals (request_id, digest, proposed_by, status, error, usage, attempts, ended_at)
            SELECT request_id, digest, proposed_by, status, error::json, usage::json, attempts::json, ended_at
            FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                        $8::timestamptz[])
                AS late (request_id, digest, proposed_by, status, error, usage, attempts, ended_at)
            WHERE (SELECT count(*) FROM late_proposals AS kept WHERE kept.request_id = late.request_id) < $9
            ON CONFLICT (request_id, digest) DO NOTHING
            """,
            [proposal.request_id for proposal in late],
            [proposal.digest for proposal in late],
            [proposal.proposed_by for proposal in late],
            [proposal.status for proposal in late],
            [proposal.error.model_dump_json() if proposal.error else None for proposal in late],
            [proposal.usage.model_dump_json() if proposal.usage else None for proposal in late],
            [_ATTEMPTS.dump_json(proposal.attempts).decode() for proposal in late],
            [proposal.ended_at for proposal in late],
            LATE_MAX,
        )
        return int(tag.rpartition(" ")[2])

    async def select_results(self, request_ids: Sequence[str]) -> list[ResultEnded]:
        """Of those that have ended as many as fit a page: who asks again hears of the rest."""
        rows = await self._database.fetch(
            """
            SELECT status, message
            FROM (
                SELECT status, message, sum(turn_bytes) OVER (ORDER BY request_id) - turn_bytes AS bytes_before
                FROM results WHERE request_id = ANY($1::text[])
            ) AS result
            WHERE bytes_before < $2
            """,
            request_ids,
            PAGE_BYTES_MAX,
        )
        return [_result(row) for row in rows]

    async def select_ledger(self, request_id: str) -> tuple[str, Ledger] | None:
        """The account and the ledger; one without an ending says nothing but that. None: nothing heard yet."""
        row = await self._database.fetchrow(
            """
            SELECT log.account_id, result.status, result.ended_by, result.message, result.attempts, result.waits,
                   result.stored_at
            FROM request_logs AS log LEFT JOIN results AS result USING (request_id)
            WHERE log.request_id = $1
            """,
            request_id,
        )
        if row is None:
            return None
        if row["status"] is None:
            return row["account_id"], Ledger()
        return row["account_id"], _ledger(row, await self._select_late(request_id))

    async def _select_late(self, request_id: str) -> list[LateEnding]:
        rows = await self._database.fetch(
            """
            SELECT proposed_by, status, error, usage, attempts, ended_at, received_at
            FROM late_proposals WHERE request_id = $1 ORDER BY received_at, digest
            """,
            request_id,
        )
        return [_late(row) for row in rows]

    async def select_transcript(
        self, session_id: str, *, after_seq: int, before_seq: int, order: Literal["asc", "desc"], limit: int
    ) -> list[tuple[str, Turn]]:
        """The account and the turn of each completed and incomplete request between two places, by place."""
        direction = "DESC" if order == "desc" else "ASC"
        rows = await self._database.fetch(
            f"""
            SELECT account_id, request_id, seq, status, input, message
            FROM (
                SELECT page.*, sum(turn_bytes) OVER (ORDER BY seq {direction}) - turn_bytes AS bytes_before
                FROM (
                    SELECT * FROM results
                    WHERE session_id = $1 AND seq > $2 AND seq < $3 AND status IN ('completed', 'incomplete')
                    ORDER BY seq {direction} LIMIT $4
                ) AS page
            ) AS turn
            WHERE bytes_before < $5
            ORDER BY seq {direction}
            """,  # noqa: S608 - one of two words of our own
            session_id,
            after_seq,
            before_seq,
            limit,
            PAGE_BYTES_MAX,
        )
        return [(row["account_id"], _turn(row)) for row in rows]


def _ending_columns(endings: Sequence[Ending]) -> tuple[list[object], ...]:
    rows = [_result_row(proposal, result) for _, proposal, result in endings]
    logs = [log for log, _, _ in endings]
    return (*([row[column] for row in rows] for column in range(12)), *head_columns(logs), *event_columns(logs))


def _result_row(proposal: Proposal, result: ResultEnded) -> tuple[object, ...]:
    turn_input = _ITEMS.dump_json(proposal.input)
    message = result.model_dump_json()
    return (
        proposal.request_id,
        proposal.account_id,
        proposal.session_id,
        proposal.seq,
        proposal.status,
        proposal.proposed_by,
        proposal.digest,
        message,
        turn_input.decode(),
        len(turn_input) + len(message),
        _ATTEMPTS.dump_json(proposal.attempts).decode(),
        _WAITS.dump_json(proposal.waits).decode(),
    )


def _result(row: Record) -> ResultEnded:
    status: Outcome = row["status"]
    return RESULT_BY_STATUS[status].model_validate_json(row["message"])


def _ledger(row: Record, late: Sequence[LateEnding]) -> Ledger:
    result = _result(row)
    stored_at: datetime = row["stored_at"]
    return Ledger(
        status=result.status,
        attempts=_ATTEMPTS.validate_json(row["attempts"]),
        waits=_WAITS.validate_json(row["waits"]),
        started_at=result.started_at,
        ended_at=result.ended_at,
        stored_at=stored_at,
        ended_by=result.ended_by,
        late=tuple(late),
    )


def _late(row: Record) -> LateEnding:
    return LateEnding(
        proposed_by=row["proposed_by"],
        status=row["status"],
        error=Failure.model_validate_json(row["error"]) if row["error"] else None,
        usage=Usage.model_validate_json(row["usage"]) if row["usage"] else None,
        attempts=_ATTEMPTS.validate_json(row["attempts"]),
        ended_at=row["ended_at"],
        received_at=row["received_at"],
    )


def _turn(row: Record) -> Turn:
    result = _result(row)
    return Turn(
        request_id=row["request_id"],
        seq=row["seq"],
        status=result.status,
        input=_ITEMS.validate_json(row["input"]),
        output_items=result.output.items if result.output else (),
        ended_at=result.ended_at,
    )
