"""Long polls and what wakes them: whoever waits registers, then reads, then waits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeAlias, TypeVar

from shared.clock import Clock
from shared.loops import Periodic
from shared.metrics import gauge
from shared.resource import Resource

T = TypeVar("T")

FindMoved: TypeAlias = Callable[[Mapping[str, int]], Awaitable[Collection[str]]]
"""Of some keys, each with the cursor up to which it is known, those that have come further."""

POLL_SECONDS: Final = 10.0
"""Wakes are best effort: what nobody heard of is found after this long."""
POLL_SECONDS_WITHOUT_BUS: Final = 1.0
_FIND_KEYS_MAX: Final = 500

_waiters = gauge("waiters", "Clients that wait for something to happen.", ("hub",))


class Listener:
    """One waiter's ear. What was heard since the last wait is not lost. `after` is the cursor it has read up to."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.heard = asyncio.Event()
        self.given: Any = None
        """What it was woken with, which need not be read."""

    async def wait(self, seconds: float) -> bool:
        """Return when woken, or after `seconds`; tells which."""
        try:
            async with asyncio.timeout(seconds):
                await self.heard.wait()
        except TimeoutError:
            return False
        finally:
            self.heard.clear()
        return True


class Hub(Resource):
    """Wakes those who wait for a key. Holds at most `waiters_max` of them; more are not refused but do not wait.

    Lost hints are made up for by all waiters at one moment and not by each at its own, so that it costs a few grouped
    reads however many wait: `find_moved` says whom to wake; without it everybody is, for their reads are grouped.
    """

    def __init__(
        self,
        name: str,
        *,
        waiters_max: int,
        bus_is_up: Callable[[], bool],
        clock: Clock,
        find_moved: FindMoved | None = None,
    ) -> None:
        self._waiters_max = waiters_max
        self._bus_is_up = bus_is_up
        self._clock = clock
        self._find_moved = find_moved
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)
        self.waiters = 0
        _waiters.labels(name).set_function(lambda: self.waiters)
        self.draining = False
        self._polled_at = 0.0
        self._polling = Periodic(f"{name}_poll", self._poll_if_due, POLL_SECONDS_WITHOUT_BUS, clock=clock)

    async def start(self) -> None:
        self._polled_at = self._clock.monotonic()
        await self._polling.start()

    async def stop(self) -> None:
        await self._polling.stop()

    @property
    def is_full(self) -> bool:
        return self.waiters >= self._waiters_max

    def drain(self) -> None:
        """Let everybody answer with what they have."""
        self.draining = True
        self.wake_all()

    def wake(self, keys: Iterable[str]) -> None:
        for key in keys:
            for listener in self._listeners.get(key, ()):
                listener.heard.set()

    def give(self, key: str, value: object) -> None:
        """Wake them with what they would read now, and would read from now on: only what stays so may be given."""
        for listener in self._listeners.get(key, ()):
            listener.given = value
            listener.heard.set()

    def wake_all(self) -> None:
        """After a reconnect hints may have been missed: everybody reads again."""
        self.wake(list(self._listeners))

    @contextmanager
    def listening(self, key: str, after: int = 0) -> Iterator[Listener]:
        listener = Listener(after)
        self._listeners[key].add(listener)
        self.waiters += 1
        try:
            yield listener
        finally:
            self._listeners[key].discard(listener)
            if not self._listeners[key]:
                del self._listeners[key]
            self.waiters -= 1

    async def watch(
        self,
        key: str,
        read: Callable[[], Awaitable[T]],
        is_answer: Callable[[T], bool],
        seconds: float,
        *,
        after: int = 0,
    ) -> T:
        """What `read` gives once it is an answer, or as it is when the time is up. It is read once in any case, so that
        nobody is given what is not theirs to read."""
        if seconds <= 0 or self.is_full or self.draining:
            return await read()
        ends_at = self._clock.monotonic() + seconds
        with self.listening(key, after) as listener:
            value = await read()
            while not is_answer(value) and not self.draining and (left := ends_at - self._clock.monotonic()) > 0:
                await listener.wait(left)
                value = await read() if listener.given is None else listener.given
        return value

    async def _poll_if_due(self) -> None:
        if self._bus_is_up() and self._clock.monotonic() - self._polled_at < POLL_SECONDS:
            return
        if self._find_moved is None:
            self.wake_all()
        else:
            await self._wake_moved(self._find_moved)
        self._polled_at = self._clock.monotonic()

    async def _wake_moved(self, find_moved: FindMoved) -> None:
        read_up_to = {key: min(listener.after for listener in listeners) for key, listeners in self._listeners.items()}
        keys = iter(read_up_to)
        while chunk := list(islice(keys, _FIND_KEYS_MAX)):
            self.wake(await find_moved({key: read_up_to[key] for key in chunk}))
