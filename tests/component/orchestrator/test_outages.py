"""The database goes away and comes back: calls are cut in time, nothing ends twice, nothing is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from services.orchestrator.config import Settings
from tests.component.orchestrator.driver import Orchestrator, command, running
from tests.component.orchestrator.test_workers import expire_all_leases
from tests.support.faults.proxy import Proxies, Proxy


@pytest.fixture
def proxy(settings: Settings) -> Iterator[Proxy]:
    proxies = Proxies()
    dsn = urlsplit(settings.database_url.get_secret_value())
    yield proxies.listen((dsn.hostname or "", dsn.port or 0))
    proxies.close()


def through(settings: Settings, proxy: Proxy) -> Settings:
    dsn = urlsplit(settings.database_url.get_secret_value())
    behind = dsn._replace(netloc=f"{dsn.username}@127.0.0.1:{proxy.port}").geturl()
    return settings.model_copy(update={"database_url": SecretStr(behind)})


async def test_an_answer_that_arrives_while_the_database_is_away_is_kept(
    surroundings: Orchestrator, proxy: Proxy
) -> None:
    await surroundings.llm.close_gate("g", "kept")
    asked = command("[[kept]]")
    # The lease outlives the outage.
    async with running(through(surroundings.settings, proxy)):
        await surroundings.send(asked)
        await surroundings.llm.wait("held >= 1", marker="kept")
        proxy.set_mode("refuse")
        proxy.cut()
        await surroundings.llm.open_gate("g")
        await surroundings.llm.wait("ended >= 1", marker="kept")
        proxy.heal()
        (ended,) = await surroundings.ended()
    assert (ended.status, len(ended.attempts)) == ("completed", 1)
    assert len(await surroundings.llm.calls(marker="kept")) == 1


@pytest.mark.usefixtures("quick_beats")
async def test_an_outage_longer_than_the_lease_cuts_the_call_and_the_task_goes_on_after_it(
    surroundings: Orchestrator, proxy: Proxy
) -> None:
    await surroundings.llm.close_gate("g", "cut")
    asked = command("[[cut]]")
    async with running(through(surroundings.settings, proxy)) as app:
        await surroundings.send(asked)
        await surroundings.llm.wait("held >= 1", marker="cut")
        proxy.set_mode("refuse")
        proxy.cut()
        await surroundings.lease_ends(app)
        await expire_all_leases(surroundings)
        # By its own clock, without having heard a word from the database.
        await surroundings.llm.wait("client_gone >= 1", marker="cut")
        await surroundings.llm.open_gate("g")
        proxy.heal()
        (ended,) = await surroundings.ended()
    assert ended.status == "completed"
    assert [attempt.outcome for attempt in ended.attempts] == ["handed_back", "succeeded"]


async def test_commands_that_arrive_during_an_outage_run_after_it(surroundings: Orchestrator, proxy: Proxy) -> None:
    asked = [command(f"{number} [[after]]") for number in range(3)]
    async with running(through(surroundings.settings, proxy)):
        proxy.set_mode("refuse")
        proxy.cut()
        await surroundings.send(*asked)
        proxy.heal()
        ended = await surroundings.ended(3)
    assert {one.status for one in ended} == {"completed"}
    assert len(await surroundings.llm.calls(marker="after")) == 3
    assert await surroundings.database.fetchval("SELECT count(*) FROM parked_messages") == 0
