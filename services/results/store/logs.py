"""SQL of the event logs: their rows' locks, what is added, and what readers see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.results.event_log import Event, Head, RequestLog, Texts, first_cursor
from shared.postgres import Connection, Database, Record

PAGE_BYTES_MAX: Final = 1024 * 1024
"""A page ends with the entry that passes it."""


@dataclass(frozen=True)
class Run:
    """What a reader gets in one go, and how far the log had come at that instant."""

    account_id: str
    visible_cursor: int
    closed: bool
    events: Sequence[Event]


class LogStore:
    """Rows of `request_logs` and `log_events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def select_heads_for_update_if_all_there(
        self, connection: Connection, request_ids: Sequence[str]
    ) -> list[Head]:
        """The rows' locks are taken in the order of the ids, by every writer; none where a row is missing."""
        rows = await connection.fetch(
            """
            SELECT request_id, account_id, session_id, seq, attempt, epoch, visible_cursor, stored_cursor, log_bytes,
                   closed
            FROM request_logs
            WHERE request_id = ANY($1::text[])
              AND cardinality($1::text[]) = (SELECT count(*) FROM request_logs WHERE request_id = ANY($1::text[]))
            ORDER BY request_id FOR UPDATE
            """,
            request_ids,
        )
        return [Head(**dict(row)) for row in rows]

    async def insert_heads_if_absent(self, connection: Connection, heads: Sequence[Head]) -> None:
        await connection.execute(
            """
            INSERT INTO request_logs (request_id, account_id, session_id, seq)
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::int[]) AS head (request_id)
            ORDER BY head.request_id
            ON CONFLICT (request_id) DO NOTHING
            """,
            [head.request_id for head in heads],
            [head.account_id for head in heads],
            [head.session_id for head in heads],
            [head.seq for head in heads],
        )

    async def select_cursors_beyond_gap(self, connection: Connection, heads: Sequence[Head]) -> dict[str, list[int]]:
        rows = await connection.fetch(
            """
            SELECT event.request_id, array_agg(event.cursor) AS cursors
            FROM unnest($1::text[], $2::bigint[]) AS head (request_id, visible_cursor)
            JOIN log_events AS event ON event.request_id = head.request_id AND event.cursor > head.visible_cursor
            GROUP BY event.request_id
            """,
            [head.request_id for head in heads],
            [head.visible_cursor for head in heads],
        )
        return {row["request_id"]: row["cursors"] for row in rows}

    async def select_visible_texts(self, connection: Connection, heads: Sequence[Head]) -> dict[str, Texts]:
        """What readers have assembled of each current attempt.

        Read once, at the end, as one short range of the primary key. A running digest in the head would be paid
        for by every progress message instead.
        """
        rows = await connection.fetch(
            """
            SELECT event.request_id,
                   coalesce(string_agg(text, '' ORDER BY cursor) FILTER (WHERE type = 'output.delta'), '') AS output,
                   coalesce(string_agg(text, '' ORDER BY cursor) FILTER (WHERE type = 'refusal.delta'), '') AS refusal
            FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS head (request_id, first_cursor, visible_cursor)
            JOIN log_events AS event
              ON event.request_id = head.request_id
             AND event.cursor BETWEEN head.first_cursor AND head.visible_cursor
            GROUP BY event.request_id
            """,
            [head.request_id for head in heads],
            [first_cursor(head.attempt) for head in heads],
            [head.visible_cursor for head in heads],
        )
        return {row["request_id"]: Texts(row["output"], row["refusal"]) for row in rows}

    async def delete_events_beyond_cuts(self, connection: Connection, logs: Sequence[RequestLog]) -> None:
        await connection.execute(
            """
            DELETE FROM log_events AS event
            USING unnest($1::text[], $2::bigint[]) AS cut (request_id, cut_after)
            WHERE event.request_id = cut.request_id AND event.cursor > cut.cut_after
            """,
            [log.head.request_id for log in logs],
            [log.cut_after for log in logs],
        )

    async def insert_events_and_update_heads_if_open(self, connection: Connection, logs: Sequence[RequestLog]) -> None:
        """One statement for the new rows and the heads of all logs of a batch."""
        await connection.execute(
            """
            WITH added AS (
                INSERT INTO log_events (request_id, cursor, type, at, text, data)
                SELECT request_id, cursor, type, at, text, data::json
                FROM unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[], $5::text[], $6::text[])
                    AS event (request_id, cursor, type, at, text, data)
            )
            UPDATE request_logs AS log
            SET attempt = head.attempt, epoch = head.epoch, visible_cursor = head.visible_cursor,
                stored_cursor = head.stored_cursor, log_bytes = head.log_bytes, closed = head.closed
            FROM unnest($7::text[], $8::int[], $9::text[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bool[])
                AS head (request_id, attempt, epoch, visible_cursor, stored_cursor, log_bytes, closed)
            WHERE log.request_id = head.request_id AND NOT log.closed
            """,
            *event_columns(logs),
            *head_columns(logs),
        )

    async def select_run(self, request_id: str, after: int, limit: int) -> Run | None:
        """The entries after a cursor that may be seen; head and rows are of one snapshot. None: nothing heard yet."""
        rows = await self._database.fetch(
            """
            SELECT log.account_id, log.visible_cursor, log.closed, event.cursor, event.type, event.at, event.text,
                   event.data
            FROM request_logs AS log
            LEFT JOIN LATERAL (
                SELECT run.*, sum(coalesce(octet_length(text), 0)) OVER (ORDER BY cursor)
                            - coalesce(octet_length(text), 0) AS bytes_before
                FROM (
                    SELECT * FROM log_events
                    WHERE request_id = log.request_id AND cursor > $2 AND cursor <= log.visible_cursor
                    ORDER BY cursor LIMIT $3
                ) AS run
            ) AS event ON event.bytes_before < $4
            WHERE log.request_id = $1
            ORDER BY event.cursor
            """,
            request_id,
            after,
            limit,
            PAGE_BYTES_MAX,
        )
        if not rows:
            return None
        events = [_event(row) for row in rows if row["cursor"] is not None]
        return Run(rows[0]["account_id"], rows[0]["visible_cursor"], rows[0]["closed"], events)

    async def select_ids_beyond(self, after: Mapping[str, int]) -> list[str]:
        """Of these requests, each with a cursor, those whose log readers may read on."""
        rows = await self._database.fetch(
            """
            SELECT log.request_id FROM unnest($1::text[], $2::bigint[]) AS known (request_id, cursor)
            JOIN request_logs AS log ON log.request_id = known.request_id AND log.visible_cursor > known.cursor
            """,
            list(after),
            list(after.values()),
        )
        return [row["request_id"] for row in rows]


def event_columns(logs: Sequence[RequestLog]) -> tuple[list[object], ...]:
    """What is to be added to the logs."""
    events = [(log.head.request_id, event) for log in logs for event in log.added]
    return (
        [request_id for request_id, _ in events],
        [event.cursor for _, event in events],
        [event.type for _, event in events],
        [event.at for _, event in events],
        [event.text for _, event in events],
        [None if event.data is None else json.dumps(event.data) for _, event in events],
    )


def head_columns(logs: Sequence[RequestLog]) -> tuple[list[object], ...]:
    """What changes in a head."""
    heads = [log.head for log in logs]
    return (
        [head.request_id for head in heads],
        [head.attempt for head in heads],
        [head.epoch for head in heads],
        [head.visible_cursor for head in heads],
        [head.stored_cursor for head in heads],
        [head.log_bytes for head in heads],
        [head.closed for head in heads],
    )


def _event(row: Record) -> Event:
    data = None if row["data"] is None else json.loads(row["data"])
    return Event(row["cursor"], row["type"], row["at"], row["text"], data)
