"""What PostgreSQL was asked, from its own log: every statement with its transaction, of every service."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import asyncpg

LOG_SECONDS_MAX = 60
TITLE_CHARACTERS = 120
_EXECUTED = re.compile(r"duration: \S+ ms  (?:execute [^:]+|statement): (?P<text>.*)", re.DOTALL)
_OWN = "bench"
_MARK = "bench.mark"


@dataclass(frozen=True, slots=True)
class Statement:
    """`transaction_id` is the one that PostgreSQL gave it: 0 as long as its transaction has written nothing."""

    database: str
    transaction_id: int
    text: str

    @property
    def verb(self) -> str:
        return self.text.split()[0].strip(";").upper()

    @property
    def is_bracket(self) -> bool:
        return self.verb in ("BEGIN", "COMMIT", "ROLLBACK")

    @property
    def title(self) -> str:
        """Its beginning on one line."""
        return " ".join(self.text.split())[:TITLE_CHARACTERS]


def parse(lines: Iterable[str]) -> list[Statement]:
    """The statements that were executed by others than the benchmark, oldest first; `lines` are of a jsonlog."""
    found = []
    for line in lines:
        entry: dict[str, Any] = json.loads(line)
        executed = _EXECUTED.match(entry.get("message", ""))
        if executed and entry.get("application_name") != _OWN and entry.get("backend_type") == "client backend":
            found.append(Statement(entry["dbname"], entry.get("txid", 0), executed["text"]))
    return found


def commits(statements: Iterable[Statement]) -> int:
    """Transactions that wrote: each is one commit that waits for the disk."""
    return len({statement.transaction_id for statement in statements} - {0})


class StatementLog:
    """`dsn` is a superuser's; the server's log_destination is jsonlog."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[list[Statement]]:
        """The list has what was executed inside the block once the block is left."""
        found: list[Statement] = []
        connection = await connect(self._dsn)
        try:
            log = await self._file(connection)
            await self._switch(connection, "0")
            begin = log.stat().st_size
            yield found
            await self._switch(connection, "-1")
            found += parse(await self._lines(connection, log, begin))
        finally:
            await self._switch(connection, "-1")
            await connection.close()

    async def _file(self, connection: "asyncpg.Connection[asyncpg.Record]") -> Path:
        folder = Path(await connection.fetchval("SHOW data_directory"))
        name: str | None = await connection.fetchval("SELECT pg_current_logfile('jsonlog')")
        if name is None:
            raise RuntimeError("the server writes no jsonlog, so statements cannot be counted")
        return folder / name

    async def _switch(self, connection: "asyncpg.Connection[asyncpg.Record]", milliseconds: str) -> None:
        await connection.execute(f"ALTER SYSTEM SET log_min_duration_statement = '{milliseconds}'")
        await connection.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(0.5)  # every backend takes note before its next command; nothing tells when all have

    async def _lines(self, connection: "asyncpg.Connection[asyncpg.Record]", log: Path, begin: int) -> list[str]:
        """The collector writes a little later: what is there up to a mark of ours is complete."""
        mark = f"{_MARK} {time.monotonic_ns()}"
        await connection.execute(f"DO $$BEGIN RAISE LOG '{mark}'; END$$")
        lines: list[str] = []
        with log.open() as file:
            file.seek(begin)
            async with asyncio.timeout(LOG_SECONDS_MAX):
                while not any(mark in line for line in lines[-100:]):
                    await asyncio.sleep(0.05)
                    lines += _whole_lines(file)
        return lines


def _whole_lines(file: TextIO) -> Iterator[str]:
    """What is there; the beginning of a line that is still being written is left for the next time."""
    while (line := file.readline()).endswith("\n"):
        yield line
    file.seek(file.tell() - len(line.encode()))


async def connect(dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
    """A connection whose statements are not counted."""
    return await asyncpg.connect(dsn, server_settings={"application_name": _OWN})
