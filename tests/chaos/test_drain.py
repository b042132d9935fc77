"""Processes that are told to end while they work: nothing is lost, nobody waits for a lease, and no client notices. Two
replicas of each service; clients and services reach each other through balancers, as in a cluster."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import asyncpg
import pytest

from deploy.local.servers import Servers
from tests.support.bus import eventually
from tests.support.faults.balancer import is_ready
from tests.support.faults.evidence import Evidence
from tests.support.faults.load import Tempo
from tests.support.faults.report import Report
from tests.support.faults.trial import Trial, trial
from tests.support.faults.world import World, apart, running_world

REPLICAS = {"gateway": 2, "orchestrator": 2, "billing": 2, "results": 2}
REQUESTS = 200
LATE = "drained-1"
OPEN_MIN = 20
TEMPO = Tempo(sessions=25, turns_max=3, short_deadlines=0, cancels=0, think_seconds_max=1)
MANY = Tempo(sessions=40, turns_max=3, short_deadlines=0, cancels=0)
SLOW = {"seed": 1, "faults": [{"probability": 1.0, "behaviour": {"kind": "ok", "words": 20, "between_chunks_ms": 75}}]}
SETTINGS = {
    # A lease that is so long that waiting for its end would show.
    "orchestrator": {"DRAIN_SECONDS": "10", "LEASE_SECONDS": "10"},
    # It would wait for the provider for an hour; but nobody lets it.
    "orchestrator-2": {"DRAIN_SECONDS": "3600"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, world_servers: Servers) -> Iterator[World]:
    with running_world(
        World(tmp_path_factory.mktemp("world"), world_servers, replicas=REPLICAS, balanced=True, settings=SETTINGS)
    ) as world:
        yield world


async def judged(running: Trial) -> tuple[Report, Evidence]:
    """The report of a run that broke no promise, and what it was made from."""
    report = await running.finish()
    assert not report.violations, str(report)
    assert report.ended == report.accepted, str(report)
    return report, await running.evidence()


async def unready(world: World, name: str) -> None:
    async def is_unready() -> bool:
        return not await is_ready(world.stack.ops_url(name))

    await eventually(is_unready)


async def takes_nothing_more(running: Trial) -> None:
    """Asked of the broker: one orchestrator less reads its queues."""

    async def one_is_missing() -> bool:
        missing = await running.consumers_missing()
        return all(missing.get(queue) == 1 for queue in ("orchestrator.requests", "orchestrator.cancels"))

    await eventually(one_is_missing)


async def runs_by_worker(world: World) -> dict[str, set[str]]:
    """The requests whose calls are under way, by the worker that has them."""
    found = defaultdict(set)
    for row in await _fetch(world, "SELECT worker_id, request_id FROM tasks WHERE state = 'running'"):
        found[row["worker_id"]].add(row["request_id"])
    return found


async def gone_workers(world: World) -> set[str]:
    return {row["id"] for row in await _fetch(world, "SELECT id FROM workers WHERE expires_at <= now()")}


async def _fetch(world: World, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(world.servers.dsns["orchestrator"])
    try:
        return await connection.fetch(query)
    finally:
        await connection.close()


def outcomes_by_request(evidence: Evidence) -> Mapping[str, list[str]]:
    """What became of each attempt, in order."""
    attempts = evidence.by_request("attempts")
    return {request_id: [row["outcome"] for row in rows] for request_id, rows in attempts.items()}


def assert_no_answer_was_thrown_away(evidence: Evidence) -> None:
    whole = Counter(call["marker"] for call in evidence.calls if call["outcome"] == "completed")
    assert {marker: count for marker, count in whole.items() if count > 1} == {}


async def test_a_worker_finishes_what_fits_its_drain_and_hands_back_the_rest(world: World) -> None:
    async with trial(world, "drained", 1, tempo=TEMPO) as running:
        # Of the users 0 to 24 some get their answers only when the worker is gone: 1 and 10 to 19.
        await running.llm.ask("PUT", "/gates/late", {"match": {"text": f"[[{LATE}"}})
        await running.hold(OPEN_MIN)
        by_worker = await runs_by_worker(world)
        ending = asyncio.create_task(apart(world.terminate, "orchestrator"))
        await unready(world, "orchestrator")
        await takes_nothing_more(running)
        await running.release()
        assert await ending == 0
        gone = await gone_workers(world)
        await running.llm.open_gate("late")
        await apart(world.restart, "orchestrator")
        report, evidence = await judged(running)

    assert report.bites["workers_lost"] == 0, str(report)
    outcomes = outcomes_by_request(evidence)
    mine = {request_id for worker in gone & by_worker.keys() for request_id in by_worker[worker]}
    late = {request_id for post in evidence.posts if post.marker.startswith(LATE) for request_id in post.request_ids}
    assert mine - late, "nothing could be finished while the worker drained"
    assert mine & late, "nothing had to be handed back"
    after = {request_id: outcomes[request_id] for request_id in mine}
    assert after == {
        request_id: ["handed_back", "succeeded"] if request_id in late else ["succeeded"] for request_id in mine
    }
    assert_no_answer_was_thrown_away(evidence)


async def test_a_second_signal_ends_the_wait_for_what_is_under_way(world: World) -> None:
    async with trial(world, "hurried", 2, tempo=TEMPO) as running:
        await running.hold(OPEN_MIN)
        ending = asyncio.create_task(apart(world.terminate, "orchestrator-2"))
        await unready(world, "orchestrator-2")
        assert not ending.done(), "it waits for its calls, which are held"
        world.signal("orchestrator-2", signal.SIGINT)
        assert await ending == 0
        await running.release()
        await apart(world.restart, "orchestrator-2")
        report, evidence = await judged(running)

    assert report.bites["workers_lost"] == 0, str(report)
    assert ["handed_back", "succeeded"] in outcomes_by_request(evidence).values()
    assert_no_answer_was_thrown_away(evidence)


async def test_every_service_is_rolled_and_no_call_of_a_client_fails(world: World) -> None:
    async with trial(world, "rolled", 3, tempo=MANY) as running:
        await running.put_mix(SLOW)
        before = {name: world.pid(name) for name in world.names()}
        await asyncio.gather(*(_roll(running, service) for service in REPLICAS))
        trouble = running.load.trouble
        await running.until_accepted(REQUESTS)
        report, evidence = await judged(running)

    assert all(world.pid(name) not in (None, before[name]) for name in before)
    assert (trouble.lost_connections, trouble.server_errors) == (0, 0)
    assert report.accepted >= REQUESTS, str(report)
    assert report.bites["workers_lost"] == 0, str(report)
    assert_no_answer_was_thrown_away(evidence)


async def _roll(running: Trial, service: str) -> None:
    """One replica after the other, each when the one before is back."""
    world = running.world
    for name in world.names(service):
        await running.load.until(lambda load: load.accepted - load.ended >= OPEN_MIN)
        assert await apart(world.terminate, name) == 0
        await apart(world.restart, name)
        if service in world.balancers:
            await apart(world.balancers[service].wait_until_routed, world.names(service))


async def test_a_process_ends_in_time_although_what_it_needs_is_away(world: World) -> None:
    """Where there is nobody to hand back to, leases and deliveries do it later."""
    names = ("gateway-2", "orchestrator", "billing-2", "results-2")
    async with trial(world, "alone", 4, tempo=TEMPO) as running:
        await running.hold(OPEN_MIN)
        for name in names:
            for peer in ("database", "broker"):
                await apart(_take_away, world, name, peer)
        assert await asyncio.gather(*(apart(world.terminate, name) for name in names)) == [0, 0, 0, 0]
        await apart(world.heal)
        await running.release()
        await judged(running)


def _take_away(world: World, name: str, peer: str) -> None:
    """Two ways to be away: nobody is there, or nobody answers."""
    link = world.links[name, peer]
    if name == "results-2":
        link.set_mode("freeze")
    else:
        link.set_mode("refuse")
        link.cut()
