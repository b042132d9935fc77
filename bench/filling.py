"""Fills the four databases with ended requests: copies of real ones, so that rows and schema are always the service's.

Of each table with a row for each request, the rows of some real requests are copied under new ids and earlier times.
"""

import asyncio
from collections.abc import Mapping, Sequence

import asyncpg

from bench.bed import say
from bench.statements import connect

TURNS_PER_SESSION = 10
APART = "interval '200 milliseconds'"
"""Between two requests: a million of them are some two days, which no retention removes."""
NOT_SHIFTED = frozenset({"period_start", "period_end"})

_COLUMNS = """
    SELECT column_name, data_type FROM information_schema.columns
    WHERE table_schema = 'public' AND table_name = $1 AND is_identity = 'NO' AND is_generated = 'NEVER'
    ORDER BY ordinal_position
"""
_TABLES_OF_REQUESTS = """
    SELECT table_name FROM information_schema.columns
    WHERE table_schema = 'public' AND column_name = 'request_id' AND table_name <> 'decisions' ORDER BY table_name
"""


async def fill(dsns: Mapping[str, str], rows: int) -> None:
    """As many requests more, in all databases, side by side. There must be some that have ended."""
    gateway = await connect(dsns["gateway"])
    try:
        found = await gateway.fetch("SELECT id, session_id FROM requests WHERE state = 'completed' LIMIT 8")
    finally:
        await gateway.close()
    originals = {row["id"]: row["session_id"] for row in found}
    await asyncio.gather(*(_fill_one(service, dsn, originals, rows) for service, dsn in dsns.items()))


async def _fill_one(service: str, dsn: str, originals: Mapping[str, str], rows: int) -> None:
    connection = await connect(dsn)
    try:
        await connection.execute("SET synchronous_commit = off")
        await connection.execute(
            "CREATE TEMP TABLE originals AS SELECT row_number() OVER () - 1 AS number, * "
            "FROM unnest($1::text[], $2::text[]) AS o (request_id, session_id)".replace(
                "$1::text[]", _literal(list(originals))
            ).replace("$2::text[]", _literal(list(originals.values())))
        )
        for table, key in await _tables(connection, service):
            copied = await _copy(connection, table, key, rows, len(originals))
            await connection.execute(f"VACUUM (ANALYZE) {table}")
            if copied:
                say(f"  {service}.{table}: {copied} rows")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


async def _tables(connection: "asyncpg.Connection[asyncpg.Record]", service: str) -> list[tuple[str, str]]:
    """Tables with the column that joins them to a request."""
    if service == "gateway":
        return [("requests", "request_id"), ("sessions", "session_id")]
    named = [(row["table_name"], "request_id") for row in await connection.fetch(_TABLES_OF_REQUESTS)]
    return [*named, ("decisions", "request_id")] if service == "billing" else named


async def _copy(
    connection: "asyncpg.Connection[asyncpg.Record]", table: str, key: str, rows: int, originals: int
) -> int:
    """How many rows that made."""
    columns = [(row["column_name"], row["data_type"]) for row in await connection.fetch(_COLUMNS, table)]
    own_key = "id" if table in ("requests", "sessions") else key
    chosen = ", ".join(_value(table, name, data_type, rows) for name, data_type in columns)
    count, session = (rows // TURNS_PER_SESSION, "n") if table == "sessions" else (rows, f"(n / {TURNS_PER_SESSION})")
    tag = await connection.execute(
        f"""
        INSERT INTO {table} ({", ".join(name for name, _ in columns)})
        SELECT {chosen}
        FROM generate_series(0, {count - 1}) AS n
        JOIN originals AS o ON o.number = {session} % {originals}
        JOIN {table} AS t ON t.{own_key} = o.{key}
        """,
        timeout=3600,
    )
    return int(tag.rpartition(" ")[2])


def _value(table: str, name: str, data_type: str, rows: int) -> str:
    """What a copy has in this column; `n` numbers the copies."""
    match table, name:
        case ("requests", "id") | (_, "request_id"):
            return _id("req", "n")
        case ("sessions", "id"):
            return _id("ses", "n")
        case (_, "session_id"):
            return _id("ses", f"(n / {TURNS_PER_SESSION})")
        case (_, "decision_id"):
            return _id("dec", "n")
        case ("requests", "idempotency_key"):
            return _id("key", "n")
        case (_, "seq"):
            return f"n % {TURNS_PER_SESSION} + 1"
        case ("sessions", "next_seq"):
            return f"{TURNS_PER_SESSION + 1}"
    if data_type in ("json", "jsonb"):
        return f"replace(t.{name}::text, o.request_id, {_id('req', 'n')})::{data_type}"
    if data_type == "timestamp with time zone" and name not in NOT_SHIFTED:
        return f"t.{name} - ({rows} - n) * {APART}"
    return f"t.{name}"


def _id(prefix: str, number: str) -> str:
    """As long as a real id, and before all of them."""
    return f"'{prefix}_' || lpad(to_hex({number}), 32, '0')"


def _literal(texts: Sequence[str]) -> str:
    return "ARRAY[" + ", ".join(f"'{text}'" for text in texts) + "]"
