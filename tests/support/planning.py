"""The plans that prepared statements end up with, and what they search their indexes for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from shared.postgres import Database


class Listening:
    """Stands where a database stands, and keeps the statements that a store would have it carry out."""

    def __init__(self) -> None:
        self.statements: list[str] = []

    async def fetch(self, sql: str, *_: object) -> list[Any]:
        self.statements.append(sql)
        return []


async def index_conditions(database: Database, sql: str) -> set[tuple[str, str]]:
    """Each index that the generic plan made now reads, with what it is searched for; with "" it is read whole."""
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE asked AS {sql}")
        try:
            count = await connection.fetchval(
                "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'asked'"
            )
            values = f"({', '.join(['NULL'] * count)})" if count else ""
            plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked{values}"))
        finally:
            await connection.execute("DEALLOCATE asked")
    return {(node["Index Name"], node.get("Index Cond", "")) for node in _nodes(plan) if "Index Name" in node}


def _nodes(plan: Any) -> Iterator[dict[str, Any]]:
    if isinstance(plan, list):
        for part in plan:
            yield from _nodes(part)
    elif isinstance(plan, dict):
        yield plan
        for part in plan.values():
            yield from _nodes(part)
