"""Rows of the database as the domain's data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from services.orchestrator.task import Task
from shared.contracts.content import Usage
from shared.contracts.gateway import SessionRequested
from shared.contracts.orchestrator import AttemptRecord, WaitRecord
from shared.postgres import Connection, Record


def attempt_record(row: Record, ended_at: datetime, open_outcome: str) -> AttemptRecord:
    """An attempt still open is taken to have ended at `ended_at` with `open_outcome`."""
    return AttemptRecord(
        attempt=row["attempt"],
        deployment=row["deployment"],
        provider=row["provider"],
        upstream_model=row["upstream_model"],
        started_at=row["started_at"],
        ended_at=row["ended_at"] or ended_at,
        outcome=row["outcome"] or open_outcome,
        http_status=row["http_status"],
        error_code=row["error_code"],
        retry_after_seconds=row["retry_after_seconds"],
        first_token_seconds=row["first_token_seconds"],
        usage=None if row["usage"] is None else Usage.model_validate_json(row["usage"]),
        cost_microcents=row["cost_microcents"],
    )


def wait_record(row: Record) -> WaitRecord:
    return WaitRecord(reason=row["reason"], after_attempt=row["after_attempt"], since=row["since"], until=row["until"])


def task_of(row: Record, attempts: Sequence[AttemptRecord], waits: Sequence[WaitRecord]) -> Task:
    return Task(
        command=SessionRequested.model_validate_json(row["command"]),
        fence=row["fence"],
        tokens=row["tokens"],
        decision_id=row["decision_id"],
        workers_lost=row["workers_lost"],
        cancel_requested=row["cancel_requested_at"] is not None,
        waited_for=row["waited_for"],
        attempts=tuple(attempts),
        waits=tuple(waits),
    )


async def tasks_with_ledgers(
    connection: Connection, rows: Sequence[Record], *, at: datetime, open_outcome: str
) -> list[Task]:
    """The tasks of `rows`, each with its attempts and waits."""
    with_history = [row["request_id"] for row in rows if row["attempts"] or row["waited_for"]]
    attempts = await _by_request(
        connection, "SELECT * FROM attempts WHERE request_id = ANY($1) ORDER BY attempt", with_history
    )
    waits = await _by_request(connection, "SELECT * FROM waits WHERE request_id = ANY($1) ORDER BY since", with_history)
    return [
        task_of(
            row,
            [attempt_record(attempt, at, open_outcome) for attempt in attempts.get(row["request_id"], ())],
            [wait_record(wait) for wait in waits.get(row["request_id"], ())],
        )
        for row in rows
    ]


async def _by_request(connection: Connection, query: str, request_ids: Sequence[str]) -> Mapping[str, Iterable[Record]]:
    grouped: dict[str, list[Record]] = {}
    if request_ids:
        for row in await connection.fetch(query, request_ids):
            grouped.setdefault(row["request_id"], []).append(row)
    return grouped
