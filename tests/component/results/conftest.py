"""The results service on a database and a virtual host of its own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from services.results.app import build
from services.results.config import Settings
from services.results.recorder import Recorder
from services.results.store.logs import LogStore
from services.results.store.results import ResultStore
from shared.http_client import HttpClient
from shared.postgres import Database
from tests.support.bus import Bus, bus
from tests.support.ports import free_port
from tests.support.result_messages import ACCOUNT

TOKEN = "a-service-token-of-tests"
OUTPUT_BYTES_MAX = 64 * 1024

FreshDatabase = Callable[[str], Awaitable[str]]


@dataclass
class Results:
    """The running service: the bus beside it, its HTTP API and its database."""

    bus: Bus
    database: Database
    client: HttpClient
    base_url: str

    async def call(
        self, method: str, path: str, *, account_id: str | None = ACCOUNT, token: str = TOKEN, body: object = None
    ) -> tuple[int, dict[str, Any]]:
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        if account_id is not None:
            headers["parley-account"] = account_id
        response = await self.client.request(
            method,
            self.base_url + path,
            headers=headers,
            content=None if body is None else json.dumps(body).encode(),
            total_seconds=10,
        )
        return response.status, json.loads(response.body)

    async def get(self, path: str, **changes: Any) -> dict[str, Any]:
        status, body = await self.call("GET", path, **changes)
        assert status == 200, body
        return body

    async def events(self, request_id: str, *, after: int = 0, limit: int = 1000) -> dict[str, Any]:
        return await self.get(f"/internal/requests/{request_id}/events?after={after}&limit={limit}")


@pytest.fixture
async def database(database_dsn: FreshDatabase) -> AsyncIterator[Database]:
    database = Database(await database_dsn("results"), service="results-test", pool_max=5)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
async def recorder(database: Database) -> Recorder:
    return Recorder(database, LogStore(database), ResultStore(database))


@pytest.fixture
async def results(database_dsn: FreshDatabase, amqp_url: str) -> AsyncIterator[Results]:
    port = free_port()
    settings = Settings(
        amqp_url=SecretStr(amqp_url),
        service_token=SecretStr(TOKEN),
        http_host="127.0.0.1",
        http_port=port,
        database_url=SecretStr(await database_dsn("results")),
        output_bytes_max=OUTPUT_BYTES_MAX,
        drain_seconds=1,
    )
    async with contextlib.AsyncExitStack() as stack:
        app = build(settings)
        client = HttpClient()
        for resource in (app.database, *app.resources, client):
            await resource.start()
            stack.push_async_callback(resource.stop)
        yield Results(await stack.enter_async_context(bus(amqp_url)), app.database, client, f"http://127.0.0.1:{port}")
