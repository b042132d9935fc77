"""Each class of fault against the whole system under load: at least twenty requests are open when it strikes, the
fault leaves traces, and afterwards every promise holds. One world is used by all tests of this file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from deploy.local.servers import Servers
from tests.support.bus import eventually
from tests.support.faults.load import Tempo
from tests.support.faults.points import POINTS
from tests.support.faults.proxy import Mode
from tests.support.faults.report import Report
from tests.support.faults.trial import Trial, trial
from tests.support.faults.world import LEASE_SECONDS, World, apart, running_world

REQUESTS = 200
TEMPO = Tempo(sessions=30, turns_max=5)
CANCELLING = Tempo(sessions=30, turns_max=5, cancels=0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, world_servers: Servers) -> Iterator[World]:
    with running_world(World(tmp_path_factory.mktemp("world"), world_servers)) as world:
        yield world


async def judged(running: Trial, *traces: str) -> Report:
    """The report of a run that broke no promise, and in which the fault left every one of these traces; `a|b` is left
    where a or b is: which of them it is, chance decides."""
    report = await running.finish()
    assert not report.violations, str(report)
    assert report.accepted >= REQUESTS, str(report)
    assert report.ended == report.accepted, str(report)
    for trace in traces:
        assert any(report.bites[one] > 0 for one in trace.split("|")), f"no trace of {trace}\n{report}"
    return report


async def test_each_service_is_killed_in_turn(world: World) -> None:
    async with trial(world, "killed", 1, tempo=TEMPO) as running:
        for name in ("orchestrator", "gateway", "billing"):
            await running.hold()
            await apart(world.kill, name)
            await running.release()
            await apart(world.restart, name)
        await running.hold()
        await apart(world.suspend, "results")
        async with running.endings_published(10):  # they are delivered to who stands still, and again when it is dead
            await running.release()
        await apart(world.kill, "results")
        await apart(world.restart, "results")
        await running.until_accepted(REQUESTS)
        await judged(running, "workers_lost", "fenced", "redelivered", "connections_lost", "holds_unreachable")


async def test_a_worker_is_suspended_past_its_lease_and_comes_back(world: World) -> None:
    async with trial(world, "suspended", 2, tempo=TEMPO) as running:
        await running.hold()
        await apart(world.suspend, "orchestrator")
        await running.release()
        await running.fenced(1)
        await apart(world.resume, "orchestrator")
        await running.until_accepted(REQUESTS)
        await judged(running, "workers_lost", "fenced", "leases_lost")


async def test_the_broker_is_killed_and_restarted(world: World) -> None:
    async with trial(world, "broker", 3, tempo=TEMPO) as running:
        await running.hold()
        bounce = asyncio.create_task(apart(world.bounce_rabbitmq, 1.0))
        await eventually(lambda: _is_down(world.rabbitmq.running))
        await running.release()  # so that endings are owed while nobody takes them
        await bounce
        await running.until_accepted(REQUESTS)
        await judged(running, "unconfirmed", "swept")


async def test_the_database_is_killed_and_restarted(world: World) -> None:
    async with trial(world, "database", 4, tempo=TEMPO) as running:
        await running.hold()
        await apart(world.suspend, "results")
        async with running.endings_published(10):  # so that results has them in hand when the database goes
            await running.release(10)
        bounce = asyncio.create_task(apart(world.bounce_postgres, LEASE_SECONDS))
        await eventually(lambda: _is_down(world.postgres.running))
        await apart(world.resume, "results")
        await running.release()
        await bounce
        await running.until_accepted(REQUESTS)
        await judged(running, "server_errors", "leases_lost", "consumers_paused")


async def _is_down(running: Callable[[], bool]) -> bool:
    return not running()


async def test_a_process_dies_at_each_of_its_crash_points(world: World) -> None:
    async with trial(world, "points", 5, tempo=CANCELLING) as running:
        await running.put_mix(
            {"seed": 5, "faults": [{"probability": 0.2, "behaviour": {"kind": "status", "status": 500}}]}
        )
        await running.hold()
        await running.release()
        assert running.open >= 20
        await asyncio.gather(*(_die_at_each(world, name, points) for name, points in _shares(world)))
        await running.until_accepted(REQUESTS)
        await judged(running, "workers_lost", "redelivered", "swept", "repeated_endings|fenced")


def _shares(world: World) -> Iterator[tuple[str, Sequence[str]]]:
    """The replicas of a service share its points, so that the other one serves meanwhile."""
    for service, points in POINTS.items():
        names = world.names(service)
        for number, name in enumerate(names):
            yield name, points[number :: len(names)]


async def _die_at_each(world: World, name: str, points: Sequence[str]) -> None:
    for point in points:
        await apart(world.arm, name, f"{point}=2")
        assert await apart(world.wait_for_death, name), f"{name} did not reach {point}"
    await apart(world.restart, name)


async def test_connections_are_cut(world: World) -> None:
    async with trial(world, "cut", 6, tempo=TEMPO) as running:
        for peer in ("broker", "database", "billing"):
            await running.hold()
            links = [proxy for (_, to), proxy in world.links.items() if to == peer]
            assert sum([await apart(proxy.cut) for proxy in links]) > 0
            await running.release()
        await running.until_accepted(REQUESTS)
        await judged(running, "redelivered|swept|fenced|repeated_endings")


async def test_connections_are_half_open_and_nobody_says_so(world: World) -> None:
    """Only silence tells: heartbeats and timeouts must find it out, for no reset ever comes."""
    async with trial(world, "halfopen", 7, tempo=TEMPO) as running:
        await running.until_accepted(REQUESTS)
        # Billing first: whoever finds it silent asks again after half as long as it has waited already.
        await running.hold()
        with world.half_open(("orchestrator", "billing")):
            await running.release()
            await running.ended(REQUESTS // 10)

        await running.hold()
        with world.half_open(("orchestrator", "database"), ("orchestrator-2", "database"), ("gateway", "database")):
            # Nor is a new one answered, or a beat might go through before its worker's lease is over.
            await _in_mode(world, "freeze")
            await running.leases_over(20)
            await _in_mode(world, "pass")
            await running.release()
            await running.ended(REQUESTS // 10)

        await running.hold()
        # Both workers', or the endings of all these calls might be those of the other one.
        with world.half_open(("orchestrator", "broker"), ("orchestrator-2", "broker"), ("results", "broker")):
            await running.release()
            await running.ended(REQUESTS // 10)
        await judged(running, "redelivered|swept", "fenced")


async def _in_mode(world: World, mode: Mode) -> None:
    for name in world.names("orchestrator"):
        await apart(world.links[name, "database"].set_mode, mode)


async def test_the_provider_stalls_cuts_and_talks_nonsense(world: World) -> None:
    faults = (
        (0.03, {"kind": "stall", "after_chunks": 2}),
        (0.05, {"kind": "cut", "after_chunks": 3}),
        (0.05, {"kind": "bad_json", "after_chunks": 2}),
        (0.03, {"kind": "bad_framing"}),
        (0.03, {"kind": "wrong_type"}),
        (0.03, {"kind": "eof", "after_chunks": 3}),
        (0.03, {"kind": "drop"}),
        (0.005, {"kind": "status", "status": 429, "retry_after_seconds": 3}),
    )
    async with trial(world, "provider", 8, tempo=TEMPO) as running:
        mix = [{"probability": probability, "behaviour": behaviour} for probability, behaviour in faults]
        await running.put_mix({"seed": 8, "faults": mix})
        await running.hold()
        await running.release()
        await running.until_accepted(REQUESTS)
        report = await judged(running, "provider_faults")
        assert report.bites["provider_faults"] >= REQUESTS // 10
