"""The only place that imports asyncpg: a pool with a bound on every wait, and two kinds of error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from shared.errors import ParleyError, Transient
from shared.logs import get_logger
from shared.resource import Resource

log = get_logger(__name__)

Record: TypeAlias = asyncpg.Record
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

_CLOSE_SECONDS = 2.0
_RETRYABLE_STATES = ("08", "40", "53", "57", "25006", "55P03")
"""Connection, rollback, resources, operator intervention, read-only (a failover), lock not available."""
_MEANINGS = {
    "28000": "it does not let this user in",
    "28P01": "the password or the user is wrong",
    "3D000": "there is no database of this name",
    "42501": "this user may not do that",
    "42703": "a column is missing: run the service's `migrate` command first",
    "42P01": "a table is missing: run the service's `migrate` command first",
}
"""Of what people meet who set a service up."""
NOT_MADE_YET = frozenset({"28000", "28P01", "3D000"})
"""A role or a database that is missing; a role without its password cannot be told from one that is not there."""


class DatabaseUnavailable(Transient):
    """The database did not answer, or asks to try again."""

    def __init__(self, sqlstate: str | None = None, cause: str | None = None) -> None:
        why = f"sqlstate {sqlstate}" if sqlstate else cause
        super().__init__("the database is not available" + (f" ({why})" if why else ""))
        self.sqlstate = sqlstate


class DatabaseRefused(ParleyError):
    """The statement or its data is wrong: the same again would fail again. Carries no value of any row."""

    def __init__(self, sqlstate: str | None, constraint: str | None) -> None:
        what = f": {_MEANINGS[sqlstate]}" if sqlstate in _MEANINGS else " a statement"
        super().__init__(f"the database refused{what} (sqlstate {sqlstate}, constraint {constraint})")
        self.sqlstate = sqlstate
        self.constraint_name = constraint


class Database(Resource):
    """One service's database. Every statement, wait for a connection and idle transaction has an end."""

    def __init__(
        self,
        dsn: str,
        *,
        service: str,
        pool_max: int = 10,
        acquire_timeout_seconds: float = 2.0,
        statement_timeout_seconds: float = 10.0,
    ) -> None:
        self._dsn = dsn
        self._service = service
        self._pool_max = pool_max
        self._acquire_timeout_seconds = acquire_timeout_seconds
        self._statement_timeout_seconds = statement_timeout_seconds
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    @property
    def address(self) -> str:
        """Where it is, for a log line: user and password are not told."""
        return urlsplit(self._dsn).netloc.rpartition("@")[2]

    async def start(self) -> None:
        milliseconds = str(int(self._statement_timeout_seconds * 1000))
        with _translated():
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=1,
                max_size=self._pool_max,
                timeout=5,
                command_timeout=self._statement_timeout_seconds + 2,
                # No session state is used (locks are the transaction's), so the round trip that clears it is saved.
                reset=_keep_session,
                server_settings={
                    "application_name": f"parley-{self._service}",
                    "statement_timeout": milliseconds,
                    "idle_in_transaction_session_timeout": milliseconds,
                    "jit": "off",
                    # A plan that was cached while its tables were empty reads them whole, and stays for ever.
                    "enable_seqscan": "off",
                    # Statements take arrays of what came together, and a plan that knows their lengths is hardly better
                    # than one that does not, but is made anew each time: at one request in flight a millisecond of it.
                    "plan_cache_mode": "force_generic_plan",
                },
            )

    async def stop(self) -> None:
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._pool.close()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool; waits for one at most the acquire timeout."""
        if self._pool is None:
            raise DatabaseUnavailable
        with _translated():
            async with self._pool.acquire(timeout=self._acquire_timeout_seconds) as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside a transaction: committed at the end, rolled back by an exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        async with self.connection() as connection:
            return await connection.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: object) -> Record | None:
        async with self.connection() as connection:
            return await connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: object) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: object) -> str:
        """The command tag, such as `UPDATE 3`."""
        async with self.connection() as connection:
            return await connection.execute(sql, *args)

    async def now(self) -> datetime:
        """The instant on the database's clock."""
        instant: datetime = await self.fetchval("SELECT clock_timestamp()")
        return instant


@contextlib.asynccontextmanager
async def savepoint(connection: Connection) -> AsyncIterator[None]:
    """A part of a transaction that is undone alone when it raises; the locks taken before it stay."""
    with _translated():
        async with connection.transaction():
            yield


async def _keep_session(_connection: object) -> None:
    return None


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn what the driver raises into our two kinds; an exception of the caller's own passes untouched."""
    try:
        yield
    except asyncpg.PostgresError as error:
        sqlstate = getattr(error, "sqlstate", None)
        if sqlstate is None or sqlstate.startswith(_RETRYABLE_STATES):
            raise DatabaseUnavailable(sqlstate) from error
        raise DatabaseRefused(sqlstate, getattr(error, "constraint_name", None)) from error
    except asyncpg.DataError as error:
        raise DatabaseRefused("22000", None) from error
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        raise DatabaseUnavailable(cause=str(error) if isinstance(error, OSError) else type(error).__name__) from error
