"""One load on a world, from its accounts to its report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import aio_pika
import aiohttp

from shared.messaging.topology import QUEUES
from tests.support.bus import eventually
from tests.support.faults.evidence import Evidence, collect, endings_published, fenced, orphaned, unsettled
from tests.support.faults.invariants import violations
from tests.support.faults.load import Load, Tempo
from tests.support.faults.report import Report
from tests.support.faults.world import GRACE_SECONDS, World
from tests.support.parley import http_session
from tests.support.standins import LlmControl

ACCOUNTS = 3
END_SECONDS = 200.0
REST_SECONDS = 60.0
CALLS_PAGE = 1000
GATE = "everybody"

_METRICS = {
    "swept": ("parley_owed_publishes_paid_total", {"payer": "sweep"}),
    "redelivered": ("parley_messages_redelivered_total", {}),
    "consumers_paused": ("parley_messages_handled_total", {"verdict": "paused"}),
    "unconfirmed": ("parley_messages_published_total", {"outcome": "unconfirmed"}),
    "repeated_endings": ("parley_results_heard_total", {"outcome": "repeated"}),
    "healed": ("parley_requests_healed_total", {}),
    "holds_unreachable": ("parley_holds_asked_total", {"verdict": "unreachable"}),
    "leases_lost": ("parley_leases_lost_total", {}),
    "zombie_writes": ("parley_zombie_writes_total", {}),
}
_PROVIDERS_FAULT = ("succeeded", "cancelled", "deadline", "worker_lost", "handed_back")


class Trial:
    """A load that runs; `finish` ends it and judges."""

    def __init__(self, world: World, load: Load, llm: LlmControl, running: asyncio.Task[None]) -> None:
        self.world = world
        self.load = load
        self.llm = llm
        self._running = running
        self._before = _counted(world)

    async def hold(self, count: int = 20, *, seconds: float = 60) -> None:
        """Calls wait at the provider's door; returns when so many do, each of a request that has not ended."""
        await self.llm.ask("PUT", f"/gates/{GATE}", {"match": {}})
        await self._unless_over(self.llm.wait(f"held >= {count}", seconds=seconds))

    async def release(self, count: int | None = None) -> None:
        """All of them, and whoever comes later; or so many of those that wait."""
        if count is None:
            await self.llm.ask("DELETE", f"/gates/{GATE}")
        else:
            await self.llm.ask("POST", f"/gates/{GATE}/release", {"count": count})

    async def put_mix(self, mix: dict[str, Any]) -> None:
        """The provider's seeded faults: {seed, faults: [{probability, behaviour}]}."""
        await self.llm.ask("PUT", "/mix", mix)

    @property
    def open(self) -> int:
        """Requests that were accepted and that their clients still wait for."""
        return self.load.accepted - self.load.ended

    async def until_accepted(self, count: int) -> None:
        """In all, since the load began."""
        await self._unless_over(self.load.until(lambda load: load.accepted >= count))

    async def ended(self, count: int) -> None:
        """So many more from now on."""
        target = self.load.ended + count
        await self._unless_over(self.load.until(lambda load: load.ended >= target))

    async def fenced(self, count: int) -> None:
        """So many tasks of lost workers were taken over by others."""

        async def taken_over() -> bool:
            return await fenced(self.world.servers.dsns["orchestrator"], self.load.account_ids) >= count

        await eventually(taken_over, seconds=30)

    async def leases_over(self, count: int) -> None:
        """So many tasks hang on a worker whose lease is over."""

        async def are_over() -> bool:
            return await orphaned(self.world.servers.dsns["orchestrator"], self.load.account_ids) >= count

        await eventually(are_over, seconds=30)

    @asynccontextmanager
    async def endings_published(self, count: int) -> AsyncIterator[None]:
        """The block is left when the broker has confirmed so many more endings than at its beginning, heard or not."""
        dsn = self.world.servers.dsns["orchestrator"]
        target = await endings_published(dsn) + count
        yield

        async def are_published() -> bool:
            return await endings_published(dsn) >= target

        await eventually(are_published)

    async def finish(self) -> Report:
        """Let everybody come to the end, wait until all is at rest, and look."""
        await self.llm.ask("DELETE", "/mix")
        self.load.stop()
        with suppress(TimeoutError):  # then the report says who never came to an end
            async with asyncio.timeout(END_SECONDS):
                await self._running
        with suppress(TimeoutError):  # then the report says what is not at rest
            await eventually(self._is_at_rest, seconds=REST_SECONDS)
        evidence = await self.evidence()
        found = violations(evidence)
        return Report(
            attempted=len(self.load.posts),
            accepted=self.load.accepted,
            ended=len({row["id"] for row in evidence.rows["requests"] if row["ended_at"] is not None}),
            violations=found,
            bites=self._bites(evidence),
        )

    async def evidence(self) -> Evidence:
        await asyncio.to_thread(self.world.scrape)
        found = await collect(self.world.servers.dsns, [self.load], await self._calls())
        found.grace_seconds = GRACE_SECONDS
        found.deployments = self.world.deployments
        found.outage_seconds = self.world.outage_seconds
        found.consumers_missing = await self.consumers_missing()
        found.requests_overdue = self.world.metrics.now("parley_requests_overdue")
        return found

    async def _calls(self) -> Sequence[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        while page := await self.llm.calls(limit=str(CALLS_PAGE), after=str(calls[-1]["number"] if calls else 0)):
            calls += page
        return calls

    async def _is_at_rest(self) -> bool:
        if await unsettled(self.world.servers.dsns):
            return False
        if await self.consumers_missing():
            return False
        # A gateway counts now and then, and what it counted during the fault may stand there still.
        await asyncio.to_thread(self.world.scrape)
        return self.world.metrics.now("parley_requests_overdue") == 0

    async def consumers_missing(self) -> dict[str, int]:
        """A replica reads each queue of its service; asked of the broker itself, past all proxies."""
        missing = {}
        async with await aio_pika.connect(self.world.servers.amqp_url) as connection:
            channel = await connection.channel()
            for queue in QUEUES:
                declared = await channel.declare_queue(queue.name, passive=True)
                expected = len(self.world.names(queue.name.partition(".")[0]))
                missing[queue.name] = expected - (declared.declaration_result.consumer_count or 0)
        return {queue: count for queue, count in missing.items() if count > 0}

    async def _unless_over(self, waiting: Any) -> None:
        """A load that dies is reported as such, not as a wait that was in vain."""
        waiter = asyncio.ensure_future(waiting)
        await asyncio.wait({waiter, self._running}, return_when=asyncio.FIRST_COMPLETED)
        if not waiter.done():
            waiter.cancel()
            self._running.result()
        await waiter

    def _bites(self, evidence: Evidence) -> dict[str, int]:
        counted = _counted(self.world)
        outcomes = [row["outcome"] for row in evidence.rows["attempts"]]
        return {
            **{name: int(counted[name] - self._before[name]) for name in _METRICS},
            "fenced": sum(row["fence"] > 1 for row in evidence.rows["tasks"]),
            "workers_lost": sum(row["workers_lost"] for row in evidence.rows["tasks"]),
            "provider_faults": sum(outcome not in _PROVIDERS_FAULT for outcome in outcomes),
            "late_endings": len(evidence.rows["late"]),
            "connections_lost": self.load.trouble.lost_connections,
            "server_errors": self.load.trouble.server_errors,
        }


@asynccontextmanager
async def trial(
    world: World, name: str, seed: int, *, tempo: Tempo | None = None, strangers: int = 1
) -> AsyncIterator[Trial]:
    """A load that has begun, with accounts of its own. Leaving the block without `finish` drops it."""
    assert "-" not in name, "markers begin with the name and a hyphen"
    makers = [(world.account, f"{name}-{number}") for number in range(ACCOUNTS)]
    makers += [(world.stranger, f"{name}-stranger-{number}") for number in range(strangers)]
    made = await asyncio.gather(*(asyncio.to_thread(make, account) for make, account in makers))
    load = Load(name, seed, world.gateways(), made[:ACCOUNTS], made[ACCOUNTS:])
    await asyncio.to_thread(world.scrape)
    async with http_session() as http:
        llm = await _fresh_provider(world, http)
        running = asyncio.create_task(load.run(tempo or Tempo()))
        try:
            yield Trial(world, load, llm, running)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def _fresh_provider(world: World, http: aiohttp.ClientSession) -> LlmControl:
    llm = LlmControl(http, world.stack.ops_url("llm"))
    await llm.ask("POST", "/reset")
    return llm


def _counted(world: World) -> dict[str, float]:
    return {name: world.metrics.total(metric, **labels) for name, (metric, labels) in _METRICS.items()}
