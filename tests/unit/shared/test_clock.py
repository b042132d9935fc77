"""The fake clock and the real ones pass the same suite."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from shared.clock import Clock, DatabaseClock, SystemClock
from shared.errors import Transient
from tests.support.clock import FakeClock


async def _pass_real_time(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def _database_time() -> datetime:
    return datetime.now(UTC) + timedelta(hours=3)


@pytest.fixture(params=["fake", "system", "database"])
async def clock_and_pass(request: pytest.FixtureRequest) -> tuple[Clock, Callable[[float], Awaitable[None]]]:
    if request.param == "fake":
        fake = FakeClock()
        return fake, fake.advance
    if request.param == "system":
        return SystemClock(), _pass_real_time
    database = DatabaseClock(_database_time)
    await database.sample()
    return database, _pass_real_time


async def test_both_readings_move_together(
    clock_and_pass: tuple[Clock, Callable[[float], Awaitable[None]]],
) -> None:
    clock, let_pass = clock_and_pass
    instant, reading = clock.now(), clock.monotonic()
    await let_pass(0.02)
    assert clock.monotonic() - reading >= 0.02
    assert (clock.now() - instant).total_seconds() >= 0.019


async def test_a_sleeper_wakes_only_after_its_time(
    clock_and_pass: tuple[Clock, Callable[[float], Awaitable[None]]],
) -> None:
    clock, let_pass = clock_and_pass
    started = clock.monotonic()
    sleeper = asyncio.create_task(clock.sleep(0.03))
    await asyncio.sleep(0)
    assert not sleeper.done()
    await let_pass(0.05)
    await sleeper
    assert clock.monotonic() - started >= 0.03


async def test_the_database_clock_says_the_databases_time_and_not_the_hosts() -> None:
    clock = DatabaseClock(_database_time)
    await clock.sample()
    ahead = clock.now() - datetime.now(UTC)
    assert timedelta(hours=2, minutes=59) < ahead < timedelta(hours=3, minutes=1)


async def test_a_slow_reading_of_the_database_clock_gives_way_to_a_quick_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of the first is 0.4 s old when it arrives: taken as it is, every instant would be 0.2 s behind."""
    host = FakeClock()
    monkeypatch.setattr("shared.clock.time", host)
    delays_seconds = iter((0.4, 0.0))

    async def read() -> datetime:
        instant = host.now()
        await host.advance(next(delays_seconds))
        return instant

    clock = DatabaseClock(read)
    await clock.sample()
    await host.advance(7)
    assert clock.now() == host.now()


async def test_the_fake_clock_wakes_sleepers_in_the_order_of_their_instants() -> None:
    clock = FakeClock()
    woken: list[str] = []

    async def sleep(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(name)

    tasks = [asyncio.create_task(sleep("later", 5)), asyncio.create_task(sleep("sooner", 2))]
    await clock.someone_sleeps()
    await asyncio.sleep(0)
    await clock.advance(10)
    await asyncio.gather(*tasks)
    assert woken == ["sooner", "later"]


async def test_an_outage_is_told_once_at_its_start_and_once_at_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [True, False, False, False, True, True]
    all_read = asyncio.Event()

    async def read() -> datetime:
        if not answers:
            all_read.set()
        elif not answers.pop(0):
            raise Transient("away")
        return datetime.now(UTC)

    following = asyncio.create_task(DatabaseClock(read).resample_forever(interval_seconds=0))
    await all_read.wait()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    told = [line for line in capsys.readouterr().out.splitlines() if "clock." in line]
    assert ["not_followed" in told[0], "followed_again" in told[1], len(told)] == [True, True, 2]
