"""The gateway on a database and a virtual host of its own, beside peers that answer as the test says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from pydantic import SecretStr

from services.gateway.app import build
from services.gateway.config import Settings
from shared.http import HttpServer
from shared.postgres import Database
from tests.component.gateway.driver import Gateway, start_gateway
from tests.component.gateway.peers import TOKEN, Peers
from tests.support.bus import bus
from tests.support.guard import GUARD_SECONDS
from tests.support.ports import free_port

FreshDatabase = Callable[[str], Awaitable[str]]


@pytest.fixture
async def database(database_dsn: FreshDatabase) -> AsyncIterator[Database]:
    dsn = await database_dsn("gateway")
    database = Database(dsn, service="gateway-test", pool_max=5, acquire_timeout_seconds=GUARD_SECONDS)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
def peers() -> Peers:
    return Peers()


@pytest.fixture
async def settings(database_dsn: FreshDatabase, amqp_url: str) -> Settings:
    return Settings(
        amqp_url=SecretStr(amqp_url),
        service_token=SecretStr(TOKEN),
        http_host="127.0.0.1",
        http_port=free_port(),
        database_url=SecretStr(await database_dsn("gateway")),
        billing_url="http://127.0.0.1:1",
        results_url="http://127.0.0.1:1",
        api_key_pepper=SecretStr("a-pepper-for-tests"),
        session_queue_max=60,
        drain_seconds=2,
    )


@pytest.fixture
async def gateway(settings: Settings, peers: Peers) -> AsyncIterator[Gateway]:
    async with contextlib.AsyncExitStack() as stack:
        port = free_port()
        peer_server = HttpServer(peers.app(), host="127.0.0.1", port=port, drain_seconds=0)
        await peer_server.start()
        stack.push_async_callback(peer_server.stop)
        base_url = f"http://127.0.0.1:{port}"
        used = settings.model_copy(update={"billing_url": base_url, "results_url": base_url})
        beside = await stack.enter_async_context(bus(settings.amqp_url.get_secret_value()))
        yield await start_gateway(stack, build(used), used, beside)


@pytest.fixture
async def second(gateway: Gateway) -> AsyncIterator[Gateway]:
    """Another replica, on the same database and virtual host, with the same customer."""
    async with contextlib.AsyncExitStack() as stack:
        used = gateway.settings.model_copy(update={"http_port": free_port()})
        second = await start_gateway(stack, build(used), used, gateway.bus)
        second.customer = gateway.customer
        yield second


@pytest.fixture
def by_wake_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is woken or waits in vain: no poll and no heartbeat reads again in its place."""
    monkeypatch.setattr("services.gateway.waiting.POLL_SECONDS", 3600.0)
    monkeypatch.setattr("services.gateway.routes.events._HEARTBEAT_SECONDS", 3600.0)
