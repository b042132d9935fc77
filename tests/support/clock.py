"""A clock that moves only when a test moves it."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta

import asyncpg

START = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


class FakeClock:
    """Sleepers wake, in the order of their instants, when `advance` passes them."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed_seconds = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._slept = 0
        self._asleep = asyncio.Condition()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed_seconds)

    def monotonic(self) -> float:
        return self._elapsed_seconds

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._slept += 1
        heapq.heappush(self._sleepers, (self._elapsed_seconds + max(seconds, 0), self._slept, woken))
        async with self._asleep:
            self._asleep.notify_all()
        await woken

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking whoever is due on the way, and let them run."""
        until = self._elapsed_seconds + seconds
        while self._sleepers and self._sleepers[0][0] <= until:
            due, _, woken = heapq.heappop(self._sleepers)
            self._elapsed_seconds = max(self._elapsed_seconds, due)
            if not woken.done():
                woken.set_result(None)
            await _let_others_run()
        self._elapsed_seconds = until
        await _let_others_run()

    async def someone_sleeps(self) -> None:
        """Return once at least one sleeper waits."""
        async with self._asleep:
            await self._asleep.wait_for(lambda: any(not woken.done() for _, _, woken in self._sleepers))


async def _let_others_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


_MOVABLE = """
    CREATE SCHEMA moved;
    CREATE TABLE moved.ahead (by interval NOT NULL);
    INSERT INTO moved.ahead VALUES ('0');
    CREATE FUNCTION moved.now() RETURNS timestamptz LANGUAGE sql STABLE
        AS 'SELECT pg_catalog.now() + by FROM moved.ahead';
    CREATE FUNCTION moved.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
        AS 'SELECT pg_catalog.clock_timestamp() + by FROM moved.ahead';
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = moved, public, pg_catalog', current_database());
    END $$;
"""


class DatabaseTime:
    """The clock of one test database: what its statements call `now()` runs ahead by as much as the test says.

    It becomes movable before anything connects; the defaults of columns keep the server's own clock.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def become_movable(self) -> None:
        await self._execute(_MOVABLE)

    async def advance(self, seconds: float) -> None:
        await self._execute("UPDATE moved.ahead SET by = by + $1", timedelta(seconds=seconds))

    async def _execute(self, sql: str, *arguments: object) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()


class FakeDatabaseClock(FakeClock):
    """In the place of a service's DatabaseClock, with the clock of its database: `advance` moves both."""

    def __init__(self, database_time: DatabaseTime) -> None:
        super().__init__(datetime.now(UTC))
        self._database_time = database_time

    async def advance(self, seconds: float) -> None:
        await self._database_time.advance(seconds)
        await super().advance(seconds)

    async def sample(self) -> None:
        return None

    async def resample_forever(self) -> None:
        await asyncio.Event().wait()
