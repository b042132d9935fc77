"""The hub: nobody misses what happens between the read and the wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

import pytest

from services.gateway import waiting
from services.gateway.waiting import POLL_SECONDS, POLL_SECONDS_WITHOUT_BUS, Hub
from shared.clock import SystemClock
from tests.support.clock import FakeClock
from tests.support.guard import GUARD_SECONDS

FOREVER = 3600.0


class Source:
    """Something that is read; `reads` lets a test wait for the nth read."""

    def __init__(self) -> None:
        self.value = 0
        self.reads = 0
        self.was_read = asyncio.Event()

    async def read(self) -> int:
        self.reads += 1
        self.was_read.set()
        return self.value

    async def next_read(self) -> None:
        await self.was_read.wait()
        self.was_read.clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Nobody reads again but who is woken."""
    monkeypatch.setattr(waiting, "POLL_SECONDS", FOREVER)
    return Hub("test", waiters_max=2, bus_is_up=lambda: True, clock=SystemClock())


async def test_a_waiter_is_answered_when_what_it_waits_for_has_happened(hub: Hub) -> None:
    source = Source()
    waiting = asyncio.create_task(hub.watch("a", source.read, bool, FOREVER))
    await source.next_read()
    hub.wake(["b", "a"])
    await source.next_read()
    assert not waiting.done()
    source.value = 7
    hub.wake(["a"])
    assert await waiting == 7
    assert source.reads == 3


async def test_a_waiter_that_is_given_the_answer_does_not_read_it_again(hub: Hub) -> None:
    source = Source()
    waiting = asyncio.create_task(hub.watch("a", source.read, bool, FOREVER))
    await source.next_read()
    hub.give("b", 6)
    hub.give("a", 7)
    assert await waiting == 7
    assert source.reads == 1


async def test_what_is_given_during_the_first_read_counts_once_that_has_succeeded(hub: Hub) -> None:
    async def read() -> int:
        hub.give("a", 7)
        return 0

    async def refuse() -> int:
        hub.give("a", 7)
        raise PermissionError

    async with asyncio.timeout(GUARD_SECONDS):
        assert await hub.watch("a", read, bool, FOREVER) == 7
        with pytest.raises(PermissionError):
            await hub.watch("a", refuse, bool, FOREVER)


async def test_a_wake_during_the_read_is_not_lost(hub: Hub) -> None:
    values = [0, 7]

    async def read() -> int:
        hub.wake(["a"])
        return values.pop(0)

    async with asyncio.timeout(GUARD_SECONDS):
        assert await hub.watch("a", read, bool, FOREVER) == 7


async def test_no_wait_reads_once(hub: Hub) -> None:
    source = Source()
    assert await hub.watch("a", source.read, bool, 0) == 0
    assert source.reads == 1


async def test_more_waiters_than_there_is_room_for_are_answered_at_once(hub: Hub) -> None:
    source = Source()
    with hub.listening("x"), hub.listening("y"):
        assert hub.is_full
        assert await hub.watch("a", source.read, bool, FOREVER) == 0
    assert not hub.is_full


async def test_a_drain_lets_everybody_answer_with_what_they_have(hub: Hub) -> None:
    source = Source()
    waiting = asyncio.create_task(hub.watch("a", source.read, bool, FOREVER))
    await source.next_read()
    hub.drain()
    assert await waiting == 0
    assert await hub.watch("a", source.read, bool, FOREVER) == 0


async def test_after_a_reconnect_everybody_reads_again(hub: Hub) -> None:
    source = Source()
    waiting = asyncio.create_task(hub.watch("a", source.read, bool, FOREVER))
    await source.next_read()
    source.value = 7
    hub.wake_all()
    assert await waiting == 7


async def test_time_that_is_up_ends_the_wait() -> None:
    clock, source = FakeClock(), Source()
    hub = Hub("test", waiters_max=2, bus_is_up=lambda: True, clock=clock)

    async def read() -> int:
        if source.reads:
            await clock.advance(0.01)
        return await source.read()

    assert await hub.watch("a", read, bool, 0.01) == 0
    assert source.reads == 2


@asynccontextmanager
async def started(hub: Hub) -> AsyncIterator[None]:
    await hub.start()
    try:
        yield
    finally:
        await hub.stop()


async def test_all_who_heard_nothing_read_again_at_one_moment() -> None:
    clock, sources = FakeClock(), [Source() for _ in range(3)]
    hub = Hub("test", waiters_max=3, bus_is_up=lambda: True, clock=clock)
    async with started(hub):
        waiting = []
        for number, source in enumerate(sources):
            waiting.append(asyncio.create_task(hub.watch(str(number), source.read, bool, FOREVER)))
            await clock.advance(POLL_SECONDS / 4)
        assert [source.reads for source in sources] == [1, 1, 1]
        for source in sources:
            source.value = 7
        await clock.advance(POLL_SECONDS / 4 + 2 * POLL_SECONDS_WITHOUT_BUS)
        assert await asyncio.gather(*waiting) == [7, 7, 7]
        assert [source.reads for source in sources] == [2, 2, 2]


async def test_without_the_bus_waiters_poll_often() -> None:
    clock, source, is_up = FakeClock(), Source(), True
    hub = Hub("test", waiters_max=1, bus_is_up=lambda: is_up, clock=clock)
    async with started(hub):
        waiting = asyncio.create_task(hub.watch("a", source.read, bool, FOREVER))
        await clock.advance(POLL_SECONDS / 2)
        assert source.reads == 1
        is_up = False
        await clock.advance(4 * POLL_SECONDS_WITHOUT_BUS)
        assert source.reads >= 4
        waiting.cancel()


async def test_where_it_can_be_asked_who_has_moved_nobody_else_reads_again() -> None:
    clock, moved, still = FakeClock(), Source(), Source()
    asked: list[Mapping[str, int]] = []

    async def find_moved(after: Mapping[str, int]) -> Collection[str]:
        asked.append(after)
        return ["moved"]

    hub = Hub("test", waiters_max=3, bus_is_up=lambda: True, clock=clock, find_moved=find_moved)
    async with started(hub):
        waiting = asyncio.create_task(hub.watch("moved", moved.read, bool, FOREVER, after=5))
        others = [asyncio.create_task(hub.watch("still", still.read, bool, FOREVER, after=after)) for after in (9, 8)]
        await clock.advance(0)
        moved.value = 7
        await clock.advance(POLL_SECONDS + 2 * POLL_SECONDS_WITHOUT_BUS)
        assert await waiting == 7
        assert asked == [{"moved": 5, "still": 8}], "one question for all, from where the last of them has read to"
        assert still.reads == 2, "each of the two once, before it waited"
        for other in others:
            other.cancel()
