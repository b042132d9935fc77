"""What a service knows of the time before it has asked its database: nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from shared.clock import DatabaseClock
from shared.loops import FollowedClock

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def test_a_clock_that_has_not_read_the_database_does_not_answer_with_the_hosts_time() -> None:
    async def never() -> datetime:
        raise AssertionError

    with pytest.raises(AssertionError, match="has not been read"):
        DatabaseClock(never).now()


async def test_nothing_else_starts_before_the_database_has_said_its_time() -> None:
    asked, said = asyncio.Event(), asyncio.Event()

    async def slow() -> datetime:
        asked.set()
        await said.wait()
        return NOW

    clock = DatabaseClock(slow)
    followed = FollowedClock(clock)
    starting = asyncio.create_task(followed.start())
    await asked.wait()
    assert not starting.done()
    said.set()
    await starting
    assert clock.now() >= NOW
    await followed.stop()
