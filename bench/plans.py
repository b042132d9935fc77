"""How PostgreSQL would carry out the services' statements if it were free to read tables whole."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import asyncpg

from bench.statements import Statement, connect

BIG_ROWS = 10_000
"""Where a table has fewer rows, reading it whole may well be the best plan."""
_PLANNED = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")


async def explain(dsns: Mapping[str, str], statements: Iterable[Statement]) -> list[dict[str, Any]]:
    """For each different statement: how often it came, and the big tables that it would read whole.

    The plan is the generic one, which a prepared statement ends up with, and the planner's settings are the defaults:
    the services' own sessions price sequential scans out, which would hide what is asked for here.
    """
    counted = Counter((one.database, one.text, one.title) for one in statements if one.verb in _PLANNED)
    found = []
    for database, dsn in dsns.items():
        connection = await connect(dsn)
        try:
            await connection.execute("SET plan_cache_mode = force_generic_plan")
            big = await _big_tables(connection)
            for (of, text, title), count in counted.items():
                if of == database:
                    read_whole = sorted(set(_scanned(await _plan(connection, text))) & big)
                    found.append({"database": of, "count": count, "read_whole": read_whole, "text": title})
        finally:
            await connection.close()
    return sorted(found, key=lambda one: -one["count"])


async def _big_tables(connection: "asyncpg.Connection[asyncpg.Record]") -> set[str]:
    rows = await connection.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND reltuples > $1", BIG_ROWS)
    return {row["relname"] for row in rows}


async def _plan(connection: "asyncpg.Connection[asyncpg.Record]", text: str) -> Any:
    await connection.execute(f"PREPARE explained AS {text}")
    try:
        count = await connection.fetchval(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'explained'"
        )
        values = f"({', '.join(['NULL'] * count)})" if count else ""
        return json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE explained{values}"))
    finally:
        await connection.execute("DEALLOCATE explained")


def _scanned(plan: Any) -> Iterator[str]:
    """The tables of all sequential scans in a plan."""
    if isinstance(plan, list):
        for part in plan:
            yield from _scanned(part)
    elif isinstance(plan, dict):
        if plan.get("Node Type") == "Seq Scan":
            yield plan["Relation Name"]
        for part in plan.values():
            if isinstance(part, list | dict):
                yield from _scanned(part)
