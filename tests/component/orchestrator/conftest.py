"""An orchestrator on a database and a virtual host of its own, beside an LLM stand-in and scripted peers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import aiohttp
import pytest
from pydantic import SecretStr

from deploy.local.standins.starting import Standin, standin
from services.orchestrator.config import Settings
from shared.http import HttpServer
from shared.postgres import Database
from tests.component.orchestrator.driver import Orchestrator, running
from tests.component.orchestrator.peers import TOKEN, Peers
from tests.support.bus import bus
from tests.support.guard import GUARD_SECONDS
from tests.support.ports import free_port
from tests.support.standins import LlmControl

FreshDatabase = Callable[[str], Awaitable[str]]
LEASE_SECONDS = 120
"""Longer than any process here is kept from the processor: a test that wants a lease to end says so."""


@pytest.fixture(scope="session")
def llm_process() -> Iterator[Standin]:
    with standin("llm", "--seed", "7") as process:
        yield process


@pytest.fixture
async def llm(llm_process: Standin) -> AsyncIterator[LlmControl]:
    async with aiohttp.ClientSession() as http:
        control = LlmControl(http, llm_process.control_url)
        await control.ask("POST", "/reset")
        yield control


@pytest.fixture
async def dsn(database_dsn: FreshDatabase) -> str:
    return await database_dsn("orchestrator")


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    database = Database(dsn, service="orchestrator-test", pool_max=5, acquire_timeout_seconds=GUARD_SECONDS)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
async def peers() -> AsyncIterator[tuple[Peers, str]]:
    peers, port = Peers(), free_port()
    server = HttpServer(peers.app(), host="127.0.0.1", port=port, drain_seconds=0)
    await server.start()
    yield peers, f"http://127.0.0.1:{port}"
    await server.stop()


@pytest.fixture
def settings(dsn: str, amqp_url: str, peers: tuple[Peers, str], llm_process: Standin) -> Settings:
    return Settings(
        amqp_url=SecretStr(amqp_url),
        service_token=SecretStr(TOKEN),
        http_host="127.0.0.1",
        database_url=SecretStr(dsn),
        billing_url=peers[1],
        results_url=peers[1],
        openai_base_url=f"{llm_process.url}/v1",
        openai_api_key=SecretStr("sk-of-tests"),
        lease_seconds=LEASE_SECONDS,
        slots=10,
        drain_seconds=5,
    )


@pytest.fixture
async def surroundings(
    settings: Settings, database: Database, peers: tuple[Peers, str], llm: LlmControl
) -> AsyncIterator[Orchestrator]:
    """Everything but the orchestrator itself, which the test starts with settings of its own."""
    amqp_url = settings.amqp_url.get_secret_value()
    async with contextlib.AsyncExitStack() as stack:
        beside = await stack.enter_async_context(bus(amqp_url))
        endings, progress = await beside.listen("session.ended"), await beside.listen("session.progressed")
        yield Orchestrator(settings, beside, database, peers[0], llm, endings, progress)


@pytest.fixture
async def orchestrator(surroundings: Orchestrator) -> AsyncIterator[Orchestrator]:
    async with running(surroundings.settings) as surroundings.app:
        yield surroundings


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a heartbeat finds out is found out at once; without this no test lives to see one."""
    monkeypatch.setattr("services.orchestrator.leases.BEATS_PER_LEASE", LEASE_SECONDS / 0.3)
