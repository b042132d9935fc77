"""Time is an input: durations are monotonic, instants come from the database that replicas share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from shared.errors import Transient
from shared.logs import get_logger

log = get_logger(__name__)

_SAMPLES_MAX: Final = 5
_ROUND_TRIP_SECONDS_GOOD: Final = 0.02


class Clock(Protocol):
    """What code that waits or compares instants is given."""

    def now(self) -> datetime:
        """The present instant, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never steps; only differences mean something."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class SystemClock:
    """This machine's clock. For processes that compare instants with nobody."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Pace:
    """Keeps turns at least so far apart, from one's beginning to the next one's; after a pause the next is at once."""

    def __init__(self, interval_seconds: float, clock: Clock) -> None:
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._next_at = 0.0

    async def wait(self, *, at_once: bool = False) -> None:
        """Return when the next turn may begin; `at_once` where this one has a reason not to wait."""
        if not at_once and (left_seconds := self._next_at - self._clock.monotonic()) > 0:
            await self._clock.sleep(left_seconds)
        self._next_at = self._clock.monotonic() + self._interval_seconds


class DatabaseClock(SystemClock):
    """The database's clock, sampled and carried on by the monotonic one: replicas agree whatever their hosts say."""

    def __init__(self, read_database_time: Callable[[], Awaitable[datetime]]) -> None:
        self._read_database_time = read_database_time
        self._sampled_at: datetime | None = None
        self._sampled_monotonic = 0.0

    async def sample(self) -> None:
        """Read the database's time; half the round trip is taken as the way back, so the error is at most the other.

        A busy host or a stopped process makes one try worth little, and every instant until the next sample would
        carry its error: of some tries the quickest counts.
        """
        quickest = await self._read_once()
        for _ in range(_SAMPLES_MAX - 1):
            if quickest[0] <= _ROUND_TRIP_SECONDS_GOOD:
                break
            quickest = min(quickest, await self._read_once())
        round_trip_seconds, self._sampled_monotonic, instant = quickest
        self._sampled_at = instant + timedelta(seconds=round_trip_seconds / 2)

    async def _read_once(self) -> tuple[float, float, datetime]:
        """The round trip in seconds, the monotonic reading at its end, and what the database said."""
        before = time.monotonic()
        instant = await self._read_database_time()
        after = time.monotonic()
        return after - before, after, instant

    def now(self) -> datetime:
        # Never this host's time instead: a bucket or a deadline that was judged by it once is wrong for all replicas.
        assert self._sampled_at is not None, "the database's clock has not been read yet"
        return self._sampled_at + timedelta(seconds=time.monotonic() - self._sampled_monotonic)

    async def resample_forever(self, interval_seconds: float = 60.0) -> None:
        """Follow the drift between this host's crystal and the database's; while that is away, go by our own."""
        away = False
        while True:
            await self.sleep(interval_seconds)
            try:
                await self.sample()
            except Transient as error:
                if not away:
                    log.warning("clock.not_followed", error=str(error))
                away = True
            else:
                if away:
                    log.warning("clock.followed_again")
                away = False
