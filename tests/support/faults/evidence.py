"""What is left when the load is over: rows of all four databases, the provider's own log, every client's view."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from services.orchestrator.routing import Deployment
from tests.support.faults.load import Load, Post, Seen

Row = Mapping[str, Any]

_QUERIES: Mapping[str, Mapping[str, str]] = {
    "gateway": {
        "requests": """
            SELECT id, session_id, account_id, seq, state, result, accepted_at, deadline_at, ended_at,
                   cancel_requested_at, abandoned_at, input,
                   num_nonnulls(requested_owed_at, cancel_owed_at, abandon_owed_at) AS owed
            FROM requests WHERE account_id = ANY($1)""",
        "copies": "SELECT account_id, sequence FROM eligibilities WHERE account_id = ANY($1)",
        "sessions": "SELECT id, running, open_requests FROM sessions WHERE account_id = ANY($1)",
    },
    "orchestrator": {
        "tasks": """
            SELECT request_id, session_id, seq, state, outcome, fence, workers_lost, decision_id, ended_published_at
            FROM tasks WHERE account_id = ANY($1)""",
        "attempts": """
            SELECT a.* FROM attempts a JOIN tasks t USING (request_id) WHERE t.account_id = ANY($1)
            ORDER BY a.request_id, a.attempt""",
        # Of everybody: a bucket is shared.
        "journal": "SELECT * FROM bucket_journal WHERE $1::text[] IS NOT NULL ORDER BY number",
    },
    "billing": {
        "decisions": """
            SELECT decision_id, request_id, decision, decided_at FROM decisions
            WHERE account_id = ANY($1) AND request_id IS NOT NULL""",
        "holds": """
            SELECT request_id, account_id, decision_id, held_tokens, state, result, charged_tokens
            FROM holds WHERE account_id = ANY($1)""",
        "ledger": "SELECT request_id, account_id, kind, tokens FROM ledger WHERE account_id = ANY($1)",
        "credits": """
            SELECT account_id, granted, settled, held, requests_charged FROM credit_accounts
            WHERE account_id = ANY($1)""",
        "eligibilities": """
            SELECT account_id, sequence, published_sequence FROM eligibilities WHERE account_id = ANY($1)""",
    },
    "results": {
        "results": """
            SELECT request_id, session_id, seq, status, ended_by, message, input, stored_at
            FROM results WHERE account_id = ANY($1)""",
        "events": """
            SELECT e.request_id, e.cursor, e.type, e.text FROM log_events e JOIN request_logs l USING (request_id)
            WHERE l.account_id = ANY($1) AND e.cursor <= l.visible_cursor ORDER BY e.request_id, e.cursor""",
        "late": """
            SELECT p.request_id, p.status FROM late_proposals p JOIN results r USING (request_id)
            WHERE r.account_id = ANY($1)""",
    },
}
_UNSETTLED: Mapping[str, str] = {
    "gateway": """
        SELECT count(*) FROM requests
        WHERE ended_at IS NULL OR num_nonnulls(requested_owed_at, cancel_owed_at, abandon_owed_at) > 0""",
    "orchestrator": "SELECT count(*) FROM tasks WHERE state <> 'finished' OR ended_published_at IS NULL",
    "billing": """
        SELECT (SELECT count(*) FROM holds WHERE state = 'held')
             + (SELECT count(*) FROM eligibilities WHERE published_sequence < sequence)""",
}
"""What still has to happen, as far as one service's rows can say it."""

_ENDED: Final = ("results", "SELECT count(*) FROM results")
_HEARD: Final = ("billing", "SELECT count(*) FROM holds WHERE state <> 'held'")
"""Billing keeps a row of each request whose end it has heard, also where it was never asked for a hold."""

_PARKED = "SELECT queue, reason, ce_id FROM parked_messages WHERE replayed_at IS NULL"


@dataclass
class Evidence:
    """Rows by table; `calls` have `started` and `ended` on the machine's wall clock, as the rows have."""

    posts: Sequence[Post]
    seen: Sequence[Seen]
    problems: Sequence[str]
    rows: dict[str, list[Row]]
    calls: list[dict[str, Any]]
    parked: list[Row] = field(default_factory=list)
    requests_overdue: float = 0.0
    consumers_missing: Mapping[str, int] = field(default_factory=dict)
    """Queues that fewer processes read than should, and how many are missing."""
    deployments: Sequence[Deployment] = ()
    """With the limits of their quota domains."""
    grace_seconds: float = 0.0
    outage_seconds: Callable[[float, float], float] = lambda since, until: 0.0
    """Between two instants: for how long something essential was away."""

    def by_request(self, table: str, key: str = "request_id") -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in self.rows[table]:
            found.setdefault(row[key], []).append(row)
        return found


async def collect(dsns: Mapping[str, str], loads: Sequence[Load], calls: Sequence[Mapping[str, Any]]) -> Evidence:
    account_ids = sorted({account_id for load in loads for account_id in load.account_ids})
    names = {load.name for load in loads}
    parts = await asyncio.gather(*(_read(dsns[service], service, account_ids) for service in _QUERIES))
    return Evidence(
        posts=[post for load in loads for post in load.posts],
        seen=[seen for load in loads for seen in load.seen],
        problems=[problem for load in loads for problem in load.problems],
        rows={table: rows for rows_by_table, _ in parts for table, rows in rows_by_table.items()},
        calls=[_on_wall_clock(call) for call in calls if str(call["marker"]).partition("-")[0] in names],
        parked=[row for _, parked in parts for row in parked],
    )


async def unsettled(dsns: Mapping[str, str]) -> int:
    """How many rows still wait for something; 0 is rest."""
    queries = (*_UNSETTLED.items(), _ENDED, _HEARD)
    *counts, ended, heard = await asyncio.gather(*(_count(dsns[service], query) for service, query in queries))
    return sum(counts) + max(0, ended - heard)


async def endings_published(dsn: str) -> int:
    return await _count(dsn, "SELECT count(*) FROM tasks WHERE ended_published_at IS NOT NULL")


async def fenced(dsn: str, account_ids: Collection[str]) -> int:
    """How many tasks of these accounts were taken from a lost worker."""
    query = "SELECT count(*) FROM tasks WHERE workers_lost > 0 AND account_id = ANY($1)"
    return await _count(dsn, query, sorted(account_ids))


async def orphaned(dsn: str, account_ids: Collection[str]) -> int:
    """Tasks of these accounts that hang on a worker whose lease is over."""
    query = """
        SELECT count(*) FROM tasks JOIN workers ON workers.id = tasks.worker_id
        WHERE tasks.state = 'running' AND workers.expires_at <= now() AND tasks.account_id = ANY($1)
    """
    return await _count(dsn, query, list(account_ids))


async def _count(dsn: str, query: str, *arguments: object) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        count: int = await connection.fetchval(query, *arguments)
    finally:
        await connection.close()
    return count


async def _read(dsn: str, service: str, account_ids: Collection[str]) -> tuple[dict[str, list[Row]], list[Row]]:
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            rows = {
                table: [_parsed(row) for row in await connection.fetch(query, account_ids)]
                for table, query in _QUERIES[service].items()
            }
            parked: list[Row] = [{"service": service, **row} for row in await connection.fetch(_PARKED)]
    finally:
        await connection.close()
    return rows, parked


def output_text(output: Mapping[str, Any]) -> str:
    """The text of an output as results keeps it: in its items only."""
    return "".join(item["content"] for item in output["items"] if item["type"] == "message")


def _parsed(row: asyncpg.Record) -> Row:
    return {
        name: json.loads(value) if name in ("result", "message", "input") and _is_json(value) else value
        for name, value in row.items()
    }


def _is_json(value: object) -> bool:
    """`holds.result` is a word, every other column of these names a document."""
    return isinstance(value, str) and value[:1] in ("{", "[")


def _on_wall_clock(call: Mapping[str, Any]) -> dict[str, Any]:
    """The stand-in stamps its calls on the monotonic clock of this machine."""
    offset = time.time() - time.monotonic()
    ended_at = call["ended_at"]
    return {
        **call,
        "started": call["arrived_at"] + offset,
        "ended": None if ended_at is None else ended_at + offset,
    }
