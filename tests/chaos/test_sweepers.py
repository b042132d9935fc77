"""What a crash or a lost message leaves undone is found by its sweeper, and counted: real processes, real losses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from deploy.local.seed import Account, await_allow, make_account, subscribe
from deploy.local.servers import Servers
from tests.support.bus import bus, eventually
from tests.support.faults.trial import GATE
from tests.support.faults.world import GRACE_SECONDS, World, apart, running_world
from tests.support.parley import Parley, http_session
from tests.support.standins import LlmControl

SWEEP_SECONDS_MAX = 120.0
"""A silent request is looked after when half a minute has passed."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, world_servers: Servers) -> Iterator[World]:
    with running_world(
        World(tmp_path_factory.mktemp("world"), world_servers, replicas={"orchestrator": 1, "gateway": 1})
    ) as world:
        yield world


@pytest.fixture(scope="module")
def account(world: World) -> Account:
    return world.account("swept")


@pytest.fixture
async def parley(world: World, account: Account) -> AsyncIterator[Parley]:
    async with http_session() as http:
        yield Parley(http, world.stack.url("gateway"), account.key)


@pytest.fixture
async def llm(world: World) -> AsyncIterator[LlmControl]:
    async with http_session() as http:
        control = LlmControl(http, world.stack.ops_url("llm"))
        yield control
        await control.ask("POST", "/reset")


async def healed(world: World, metric: str, before: float, **labels: str) -> None:
    async def is_counted() -> bool:
        return await total(world, metric, **labels) > before

    await eventually(is_counted, seconds=SWEEP_SECONDS_MAX)


async def total(world: World, metric: str, **labels: str) -> float:
    await apart(world.scrape)
    return world.metrics.total(f"parley_{metric}_total", **labels)


async def ends(parley: Parley, request_id: str, status: str) -> None:
    async def has_ended() -> bool:
        return bool((await parley.ask("GET", f"/v1/requests/{request_id}"))["status"] == status)

    await eventually(has_ended, seconds=SWEEP_SECONDS_MAX)


async def held(llm: LlmControl) -> None:
    await llm.ask("PUT", f"/gates/{GATE}", {"match": {}})


async def purge(world: World, queue: str, count: int) -> None:
    """Lose the messages of a queue, once so many are there."""
    async with bus(world.servers.amqp_url) as beside:

        async def are_there() -> bool:
            return await beside.count(queue) >= count

        await eventually(are_there)
        await (await beside.channel.get_queue(queue)).purge()


@asynccontextmanager
async def death_before_publishing(world: World, name: str, message_type: str, owed: str) -> AsyncIterator[None]:
    """The block makes the process owe such a message, of which it dies; once it is back, its sweep pays."""
    before = await total(world, "owed_publishes_paid", owed=owed, payer="sweep")
    await apart(world.arm, name, f"publish.{message_type}.before=1")
    yield
    assert await apart(world.wait_for_death, name)
    await apart(world.restart, name)
    await healed(world, "owed_publishes_paid", before, owed=owed, payer="sweep")


async def test_a_command_is_swept_up_where_the_gateway_died_before_its_publish(world: World, parley: Parley) -> None:
    session_id = await parley.session()
    async with death_before_publishing(world, "gateway", "session.requested", "session.requested"):
        posting = asyncio.create_task(parley.post(session_id, "hello"))
    await asyncio.gather(posting, return_exceptions=True)  # its answer may have gone out, or not
    (request,) = (await parley.ask("GET", f"/v1/sessions/{session_id}/requests"))["data"]
    await ends(parley, request["id"], "completed")


async def test_a_cancel_is_swept_up_where_the_gateway_died_before_its_publish(
    world: World, parley: Parley, llm: LlmControl
) -> None:
    await held(llm)
    async with death_before_publishing(world, "gateway", "session.cancel_requested", "session.cancel_requested"):
        request_id = await parley.post(await parley.session(), "hello")
        cancelling = asyncio.create_task(parley.ask("POST", f"/v1/requests/{request_id}/cancel"))
    await asyncio.gather(cancelling, return_exceptions=True)
    await ends(parley, request_id, "cancelled")


async def test_the_proposal_of_an_end_is_swept_up_where_the_gateway_died_before_its_publish(
    world: World, parley: Parley, llm: LlmControl
) -> None:
    await held(llm)
    async with death_before_publishing(world, "gateway", "session.abandoned", "session.abandoned"):
        session_id = await parley.session()
        await parley.post(session_id, "hello")
        waiting = await parley.post(session_id, "it waits for its turn, and is cancelled before it is handed over")
        cancelling = asyncio.create_task(parley.ask("POST", f"/v1/requests/{waiting}/cancel"))
    await asyncio.gather(cancelling, return_exceptions=True)
    await ends(parley, waiting, "cancelled")


async def test_an_eligibility_is_swept_up_where_billing_died_before_its_publish(world: World) -> None:
    """Billing dies in the middle of a customer's webhooks; those that it has stored are worked on when it is back."""
    applied = await total(world, "billing_stripe_events", outcome="applied")
    made = await apart(make_account, world.stack, "announced")
    async with death_before_publishing(world, "billing", "eligibility.changed", "eligibility_changes"):
        account = await apart(subscribe, world.stack, made)
    await healed(world, "billing_stripe_events", applied, outcome="applied")
    await apart(await_allow, world.stack, account)


async def test_an_ending_is_swept_up_where_the_orchestrator_died_before_its_publish(
    world: World, parley: Parley
) -> None:
    async with death_before_publishing(world, "orchestrator", "session.ended", "session_endings"):
        request_id = await parley.post(await parley.session(), "hello")
    await ends(parley, request_id, "completed")


async def test_the_task_of_a_killed_worker_is_claimed(world: World, parley: Parley, llm: LlmControl) -> None:
    await held(llm)
    before = await total(world, "tasks_claimed", source="lost_worker")
    request_id = await parley.post(await parley.session(), "hello")
    await llm.wait("held >= 1")
    await apart(world.kill, "orchestrator")
    await llm.ask("DELETE", f"/gates/{GATE}")
    await apart(world.restart, "orchestrator")
    await healed(world, "tasks_claimed", before, source="lost_worker")
    await ends(parley, request_id, "completed")


async def test_lost_messages_and_a_service_that_stays_away_are_healed_in_time(
    world: World, parley: Parley, llm: LlmControl
) -> None:
    """Side by side, for each takes its time: a command lost, two endings lost (one on each of its ways), and a request
    that nobody runs before its deadline."""
    actions = ("repeated", "ended", "abandoned")
    before = {action: await total(world, "requests_healed", action=action) for action in actions}
    expired = await total(world, "billing_holds_expired")
    paid = await total(world, "owed_publishes_paid", owed="session.requested")

    await held(llm)
    unheard = await parley.post(await parley.session(), "nobody hears of its end", deadline_seconds=60)
    await llm.wait("held >= 1")
    # A gateway that dies before its row is marked sends the command again, and its repeat brings the lost ending back.
    await healed(world, "owed_publishes_paid", paid, owed="session.requested")
    for name in ("gateway", "billing"):
        await apart(world.kill, name)
    await llm.ask("DELETE", f"/gates/{GATE}")
    await purge(world, "gateway.results", 1)
    await purge(world, "billing.results", 1)
    for name in ("billing", "gateway"):
        await apart(world.restart, name)

    await apart(world.kill, "orchestrator")
    lost = await parley.post(await parley.session(), "its command is lost", deadline_seconds=300)
    await purge(world, "orchestrator.requests", 1)
    given_up = await parley.post(await parley.session(), "nobody runs it", deadline_seconds=5)
    await healed(world, "requests_healed", before["abandoned"], action="abandoned")
    await ends(parley, given_up, "failed")
    await apart(world.restart, "orchestrator")

    await healed(world, "requests_healed", before["ended"], action="ended")
    await ends(parley, unheard, "completed")
    await healed(world, "requests_healed", before["repeated"], action="repeated")
    await ends(parley, lost, "completed")
    await eventually(lambda: _hold_expired(world, expired), seconds=SWEEP_SECONDS_MAX + 60 + 2 * GRACE_SECONDS)


async def _hold_expired(world: World, before: float) -> bool:
    return await total(world, "billing_holds_expired") > before
