"""The database is gone for two minutes while messages wait for every service and go on arriving: nobody ends, nobody
spins, nothing is parked, and afterwards everything comes to its one end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import pytest

from deploy.local.environment import SERVICES
from deploy.local.servers import Servers
from shared.messaging.topology import EXCHANGE
from tests.support.bus import Bus, Listener, bus, eventually
from tests.support.faults.load import Tempo
from tests.support.faults.trial import Trial, trial
from tests.support.faults.world import World, apart, running_world
from tests.support.parley import Parley, http_session

OUTAGE_SECONDS = 120.0
REQUESTS = 200
WAVE = 70
"""At least so many messages wait for each service when the database goes."""
TEMPO = Tempo(sessions=260, turns_max=2, deadline_seconds=900, short_deadlines=0.0, cancels=0.1)
LOOK_SECONDS = 3.0
TRIES_A_SECOND_MAX = 3.0
"""Of one process, over all the queues that it reads."""
GROWTH_BYTES_MAX = 64 * 2**20
PATIENT = {"LEASE_SECONDS": "10", "FIRST_TOKEN_SECONDS": "600", "ATTEMPT_SECONDS": "600"}
"""Nothing but the outage cuts a call that is held at the provider's door."""
HOLD_SECONDS = 180.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, world_servers: Servers) -> Iterator[World]:
    with running_world(
        World(tmp_path_factory.mktemp("world"), world_servers, settings={"orchestrator": PATIENT})
    ) as world:
        yield world


async def test_the_database_is_gone_for_two_minutes_while_messages_arrive(world: World) -> None:
    asker = await apart(world.account, "asker")
    async with (
        http_session() as http,
        bus(world.servers.amqp_url) as beside,
        trial(world, "outage", 11, tempo=TEMPO) as running,
    ):
        watches = [Watch(world, http, await _poster(http, url, asker.key)) for url in world.gateways()]
        commands = await beside.listen("session.requested", "session.cancel_requested")
        await messages_wait_for_everybody(world, running)

        outage = asyncio.create_task(apart(world.bounce_postgres, OUTAGE_SECONDS))
        await eventually(lambda: _is_down(world))
        for name in (name for name in world.names() if not name.startswith("orchestrator")):
            await apart(world.resume, name)
        await running.release()
        async with asyncio.TaskGroup() as group:
            for watch in watches:
                group.create_task(watch.look(outage))
            group.create_task(_repeat(beside, commands, outage))
            redelivered = group.create_task(_redelivered(world, outage))
        assert await apart(_redelivered_so_far, world) == redelivered.result()
        report = await running.finish()

    assert not report.violations, str(report)
    assert report.ended == report.accepted >= REQUESTS, str(report)
    for watch in watches:
        watch.judge()
    tries = {name: _pauses(world.stack.log(name)) for name in world.names()}
    for service in SERVICES:
        assert sum(tries[name] for name in world.names(service)) > 0, tries
    assert max(tries.values()) <= OUTAGE_SECONDS * TRIES_A_SECOND_MAX, tries


async def _is_down(world: World) -> bool:
    return not world.postgres.running()


async def messages_wait_for_everybody(world: World, running: Trial) -> None:
    """Two waves of endings: the first waits for gateway and billing, the second for results. The rest of the calls
    goes on: their workers will lose their leases."""
    await running.hold(REQUESTS, seconds=HOLD_SECONDS)
    for name in world.names("gateway") + world.names("billing"):
        await apart(world.suspend, name)
    announced = await apart(_announced, world)
    await running.release(WAVE)
    await eventually(lambda: _are_announced(world, announced + WAVE))
    await apart(world.suspend, "results")
    async with running.endings_published(WAVE):
        await running.release(WAVE)


async def _are_announced(world: World, count: float) -> bool:
    return await apart(_announced, world) >= count


def _announced(world: World) -> float:
    """Results that the broker has confirmed; that their rows are written says nothing of that."""
    return world.scrape().total("parley_messages_published_total", type="result.completed", outcome="confirmed")


async def _redelivered(world: World, outage: asyncio.Task[None]) -> float:
    """So far, a while into the outage: those whose connection was lost while their process stood still are back."""
    await asyncio.wait([outage], timeout=OUTAGE_SECONDS / 2)
    return float(await apart(_redelivered_so_far, world))


def _redelivered_so_far(world: World) -> float:
    return world.scrape().total("parley_messages_redelivered_total")


async def _repeat(beside: Bus, commands: Listener, outage: asyncio.Task[None]) -> None:
    """Every command comes once more, as from a gateway that had heard nothing, spread over half of the outage."""
    exchange = await beside.channel.get_exchange(EXCHANGE)
    heard = list(commands.heard)
    for incoming in heard:
        message = aio_pika.Message(incoming.body, headers=dict(incoming.headers), content_type=incoming.content_type)
        await exchange.publish(message, routing_key=str(incoming.routing_key))
        await asyncio.wait([outage], timeout=OUTAGE_SECONDS / 2 / len(heard))


@dataclass
class Poster:
    """A client that goes on asking one gateway for new turns."""

    parley: Parley
    session_id: str
    key: int = 0

    async def post(self) -> tuple[int, str, bool]:
        """Status, code, and whether it was said when to come again."""
        self.key += 1
        answer = await self.parley.call(
            "POST",
            f"/v1/sessions/{self.session_id}/requests",
            body={"input": "Is somebody there?"},
            headers={"idempotency-key": f"outage-{self.key}"},
        )
        return answer.status, str((answer.body or {}).get("code")), "Retry-After" in answer.headers


async def _poster(http: aiohttp.ClientSession, url: str, key: str) -> Poster:
    parley = Parley(http, url, key)
    return Poster(parley, await parley.session())


@dataclass
class Watch:
    """What one client and an operator see of the processes while the database is away."""

    world: World
    http: aiohttp.ClientSession
    poster: Poster
    answers: set[tuple[int, str, bool]] = field(default_factory=set)
    health: set[int] = field(default_factory=set)
    ready: dict[str, int] = field(default_factory=dict)
    """As it was last."""
    pids: dict[str, set[int | None]] = field(default_factory=dict)
    bytes_used: dict[str, list[int]] = field(default_factory=dict)

    async def look(self, outage: asyncio.Task[None]) -> None:
        """Again and again, until shortly before the database may be back."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + OUTAGE_SECONDS - 4 * LOOK_SECONDS
        while loop.time() < ends_at:
            await self._look_once()
            await asyncio.wait([outage], timeout=LOOK_SECONDS)
        await outage

    async def _look_once(self) -> None:
        self.answers.add(await self.poster.post())
        for name in self.world.names():
            pid = self.world.pid(name)
            self.pids.setdefault(name, set()).add(pid)
            self.bytes_used.setdefault(name, []).append(_resident_bytes(pid))
            self.health.add(await self._status(name, "healthz"))
            self.ready[name] = await self._status(name, "readyz")

    async def _status(self, name: str, path: str) -> int:
        async with self.http.get(f"{self.world.stack.ops_url(name)}/{path}") as response:
            return response.status

    def judge(self) -> None:
        assert self.answers == {(503, "unavailable", True)}
        assert self.health == {200}
        # A gateway still answers, and with more than a load balancer would; who has lost his lease takes on nothing.
        assert {name for name, status in self.ready.items() if status == 503} == set(self.world.names("orchestrator"))
        assert all(len(pids) == 1 and None not in pids for pids in self.pids.values()), self.pids
        grown = {name: max(used) - used[0] for name, used in self.bytes_used.items()}
        assert max(grown.values()) <= GROWTH_BYTES_MAX, grown


def _resident_bytes(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def _pauses(log: Path) -> int:
    """How often a consumer of this process has tried in vain."""
    return sum(entry.get("event") == "consumer.paused" for entry in _entries(log))


def _entries(log: Path) -> Iterator[Mapping[str, Any]]:
    for line in log.read_text().splitlines():
        if line.startswith("{"):
            yield json.loads(line)
