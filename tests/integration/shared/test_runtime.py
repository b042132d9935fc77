"""How a process ends: what it still does after the signal, in which order, and that nothing can keep it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from shared import http, runtime
from shared.config import ServiceSettings
from shared.errors import Transient
from shared.http import HttpServer, json_response, make_app, read_body
from shared.postgres import Database
from shared.resource import Resource
from shared.runtime import App, serve
from tests.support.bus import eventually
from tests.support.guard import GUARD_SECONDS
from tests.support.ports import free_port

MIGRATIONS = Path(__file__).parents[3] / "services" / "results" / "migrations"
HOST = "127.0.0.1"
LARGE_BYTES = 32 * 2**20
"""More than the kernel takes for a reader that does not read."""


class Stubborn(Resource):
    """Never stops of its own accord."""

    async def stop(self) -> None:
        await asyncio.Event().wait()


class Hanging(Resource):
    """Never starts: what it waits for is gone."""

    start_seconds_max = 0.05

    async def start(self) -> None:
        await asyncio.Event().wait()


class Torn(Resource):
    """Waits for a connection that dies: the driver cancels what waits for it."""

    async def start(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        waiting.cancel()
        await waiting


@dataclass
class Note(Resource):
    """Remembers when it was stopped."""

    name: str
    stopped: list[str]

    async def stop(self) -> None:
        self.stopped.append(self.name)


@dataclass
class Process:
    """A process with one listener, in the test's own process; `/slow` answers once `gate` is open."""

    settings: ServiceSettings
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.settings.http_port}"

    def server(self) -> HttpServer:
        async def slow(_: web.Request) -> web.Response:
            self.entered.set()
            await self.gate.wait()
            return json_response({})

        async def upload(request: web.Request) -> web.Response:
            self.entered.set()
            return json_response({"bytes": len(await read_body(request))})

        async def large(_: web.Request) -> web.Response:
            self.entered.set()
            return web.Response(body=b"x" * LARGE_BYTES)

        async def quick(_: web.Request) -> web.Response:
            return json_response({})

        app = make_app(body_bytes_max=2**20, body_seconds_max=GUARD_SECONDS)
        app.add_routes([web.get("/slow", slow), web.post("/upload", upload)])
        app.add_routes([web.get("/large", large), web.get("/quick", quick)])
        settings = self.settings
        return HttpServer(app, host=HOST, port=settings.http_port, drain_seconds=settings.drain_seconds)

    async def status(self, path: str) -> int:
        """On a connection of its own; 0 where nobody listens."""
        return await _status(self.url + path)

    async def is_ready(self) -> bool:
        return await _status(f"http://{HOST}:{self.settings.ops_port}/readyz") == 200

    async def is_unready(self) -> bool:
        return not await self.is_ready()

    async def has_closed(self) -> bool:
        return await self.status("/quick") == 0


async def _status(url: str) -> int:
    async with aiohttp.ClientSession() as client:
        try:
            async with client.get(url) as response:
                return response.status
        except aiohttp.ClientConnectorError:
            return 0


Start = Callable[..., Awaitable[tuple[Process, asyncio.Task[int]]]]


@pytest.fixture
async def start(database_dsn: Callable[[str], Awaitable[str]]) -> AsyncIterator[Start]:
    """`await start(*resources, delay=..., drain=...)`: a process that is ready, and what becomes its exit status."""
    dsn = await database_dsn("results")
    serving: list[asyncio.Task[int]] = []

    async def started(*resources: Resource, delay: float, drain: float) -> tuple[Process, asyncio.Task[int]]:
        settings = ServiceSettings.model_validate(
            {
                "amqp_url": "amqp://unused",
                "service_token": "0123456789abcdef",
                "http_host": HOST,
                "http_port": free_port(),
                "ops_port": free_port(),
                "drain_delay_seconds": delay,
                "drain_seconds": drain,
            }
        )
        process = Process(settings)
        app = App("results", Database(dsn, service="test"), [*resources, process.server()])
        serving.append(asyncio.create_task(serve(app, settings, MIGRATIONS)))

        async def is_decided() -> bool:
            return serving[-1].done() or await process.is_ready()

        await eventually(is_decided)
        if serving[-1].done():
            await serving[-1]
        return process, serving[-1]

    yield started
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(number)


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """The port of a server that never says a word, and whether somebody has connected to it."""
    met = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(listen, HOST, 0)
    yield server.sockets[0].getsockname()[1], met
    server.close()


@asynccontextmanager
async def connection(process: Process) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, process.settings.http_port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def head(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(GUARD_SECONDS):
        return (await reader.readuntil(b"\r\n\r\n")).decode()


async def test_it_turns_unready_first_and_still_takes_new_connections_which_it_then_closes(start: Start) -> None:
    process, ended = await start(delay=120, drain=60)
    async with connection(process) as (reader, writer):
        writer.write(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "Connection: close" not in await head(reader)
        tell(signal.SIGTERM)
        await eventually(process.is_unready)
        assert await process.status("/quick") == 200
        await reader.readexactly(len(b"{}"))
        writer.write(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
        assert "Connection: close" in await head(reader)
        assert await reader.read() == b"{}"  # to the end: it is closed
    assert not ended.done()
    tell(signal.SIGTERM)
    assert await ended == 0


async def test_what_is_under_way_when_the_listener_closes_is_finished_even_a_body_on_its_way(start: Start) -> None:
    process, ended = await start(delay=0, drain=60)
    async with connection(process) as (reader, writer):
        writer.write(b"POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
        await process.entered.wait()
        tell(signal.SIGTERM)
        await eventually(process.has_closed)
        writer.write(b"half")
        assert (await head(reader)).startswith("HTTP/1.1 200")
        assert await reader.read() == b'{"bytes": 8}'
    assert await ended == 0


async def test_an_answer_is_sent_to_its_end_however_slowly_it_is_read(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_CUT_SECONDS", 0.02)
    process, ended = await start(delay=0, drain=60)
    async with connection(process) as (reader, writer):
        writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await process.entered.wait()
        tell(signal.SIGTERM)
        await eventually(process.has_closed)
        await asyncio.sleep(10 * http._CUT_SECONDS)  # were it cut, it would be by then
        await head(reader)
        assert len(await reader.readexactly(LARGE_BYTES)) == LARGE_BYTES
    assert await ended == 0


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_waits_for_nothing(start: Start, again: signal.Signals) -> None:
    process, ended = await start(delay=0, drain=3600)
    async with connection(process) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await process.entered.wait()
        tell(signal.SIGTERM)
        await eventually(process.has_closed)
        tell(again)
        assert await ended == 0
        assert await reader.read() == b""


async def test_a_call_that_does_not_end_within_the_drain_is_cut(start: Start) -> None:
    process, ended = await start(delay=0, drain=0.1)
    async with connection(process) as (reader, writer):
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await process.entered.wait()
        tell(signal.SIGTERM)
        assert await ended == 0
        assert await reader.read() == b""


async def test_what_does_not_stop_is_left_and_all_the_others_are_stopped(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "STOP_SECONDS_MAX", 0.1)
    stopped: list[str] = []
    _, ended = await start(Note("first", stopped), Stubborn(), Note("last", stopped), delay=0, drain=0)
    tell(signal.SIGTERM)
    assert await ended == 0
    assert stopped == ["last", "first"]


@pytest.mark.parametrize(
    ("resource", "why"), [(Hanging(), "Hanging did not start in time"), (Torn(), "Torn lost its connection")]
)
async def test_a_start_that_nothing_will_end_ends_the_process_and_stops_what_was_started(
    start: Start, resource: Resource, why: str
) -> None:
    stopped: list[str] = []
    with pytest.raises(Transient, match=why):
        await start(Note("first", stopped), resource, delay=0, drain=0)
    assert stopped == ["first"]


async def test_a_signal_ends_a_process_that_is_still_connecting_to_its_broker(
    database_dsn: Callable[[str], Awaitable[str]],
) -> None:
    async with silent_server() as (port, connected):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.results"),
            env={
                "PATH": os.environ["PATH"],
                "AMQP_URL": f"amqp://guest:guest@{HOST}:{port}/",
                "RESULTS_DATABASE_URL": await database_dsn("results"),
                "SERVICE_TOKEN": "0123456789abcdef",
                "HTTP_HOST": HOST,
                "HTTP_PORT": str(free_port()),
                "OPS_PORT": str(free_port()),
            },
        )
        try:
            async with asyncio.timeout(GUARD_SECONDS):
                await connected.wait()
                process.terminate()
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
