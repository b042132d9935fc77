"""The load: one generator for both systems. Each request is posted and then polled to its end by the same client."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp

CLIENT_SECONDS_MAX = 300


class System(Protocol):
    """What can be loaded. A place is where a request goes, such as a session; it is made before the clock starts."""

    name: str
    retries: int
    """Calls that were answered 503 and made again."""

    async def make_places(self, http: aiohttp.ClientSession, count: int) -> Sequence[str]: ...

    async def post(self, http: aiohttp.ClientSession, place: str) -> str:
        """Returns the id once the system has answered 202."""

    async def poll(self, http: aiohttp.ClientSession, place: str, request_id: str) -> None:
        """Returns once the answer is there; raises where it is not a good one."""

    async def until_settled(self) -> None:
        """Returns once nothing is left to do for what was asked so far."""

    def pids(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds from the post to its 202, and to the answer."""

    accept_seconds: float
    total_seconds: float


@dataclass(frozen=True)
class Load:
    """`count` requests: `in_flight` at a time, or `per_second` begun each second whatever becomes of the others."""

    count: int
    in_flight: int | None = None
    per_second: float | None = None


@dataclass(frozen=True)
class Outcome:
    """`seconds` run from the first post to the last answer."""

    samples: Sequence[Sample]
    seconds: float


def client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=CLIENT_SECONDS_MAX)
    )


async def run(system: System, http: aiohttp.ClientSession, places: Sequence[str], load: Load) -> Outcome:
    began = time.monotonic()
    if load.in_flight is not None:
        samples = await _closed(system, http, places[: load.count], load.in_flight)
    else:
        assert load.per_second is not None, "a load is closed or open"
        samples = await _open(system, http, places[: load.count], load.per_second)
    return Outcome(samples, time.monotonic() - began)


async def _closed(
    system: System, http: aiohttp.ClientSession, places: Sequence[str], in_flight: int
) -> Sequence[Sample]:
    samples: list[Sample] = []
    left = iter(places)

    async def user() -> None:
        for place in left:
            samples.append(await _once(system, http, place))

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(user())
    return samples


async def _open(
    system: System, http: aiohttp.ClientSession, places: Sequence[str], per_second: float
) -> Sequence[Sample]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, place in enumerate(places):
            await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
            tasks.append(group.create_task(_once(system, http, place)))
    return [task.result() for task in tasks]


async def _once(system: System, http: aiohttp.ClientSession, place: str) -> Sample:
    began = time.monotonic()
    request_id = await system.post(http, place)
    accepted = time.monotonic()
    await system.poll(http, place, request_id)
    return Sample(accepted - began, time.monotonic() - began)
