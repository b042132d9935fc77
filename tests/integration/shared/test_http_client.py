"""What a hostile or broken server can do to the HTTP client: its answers are taken as they are sent, once, in turn."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from shared.http_client import CallFailed, HttpClient, Timeouts
from tests.support.guard import GUARD_SECONDS
from tests.support.sockets import raw_peer

BOMB_BYTES = 64 * 2**20
BOMB = gzip.compress(gzip.compress(bytes(BOMB_BYTES), mtime=0), mtime=0)


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient(connections_max=10)
    await client.start()
    yield client
    await client.stop()


def _encoded(status: str, encoding: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_a_bomb_is_refused_before_it_is_read(client: HttpClient) -> None:
    assert len(BOMB) < 1000

    async def throw(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_encoded("200 OK", "gzip, gzip", BOMB))
        await writer.drain()

    async with raw_peer(throw) as url:
        tracemalloc.start()
        try:
            with pytest.raises(CallFailed) as failed:
                await client.request("GET", url, total_seconds=GUARD_SECONDS, body_bytes_max=2 * BOMB_BYTES)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert failed.value.kind == "protocol"
    assert peak_bytes < BOMB_BYTES // 16


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(b"whole")),
        ("gzip", gzip.compress(b"cut" * 100)[:-10]),
        ("gzip", b"not gzip at all"),
        ("rot13", b"jubyr"),
    ],
    ids=["gzip", "half of gzip", "no gzip", "an unknown encoding"],
)
async def test_an_encoding_that_was_not_asked_for_breaks_the_protocol(
    client: HttpClient, encoding: str, body: bytes
) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_encoded("200 OK", encoding, body))
        await writer.drain()

    async with raw_peer(answer) as url:
        with pytest.raises(CallFailed) as failed:
            await client.request("GET", url, total_seconds=GUARD_SECONDS)
    assert (failed.value.kind, failed.value.maybe_sent) == ("protocol", True)


@pytest.mark.parametrize("encoding", ["identity", ""])
async def test_a_plain_answer_may_say_that_it_is_plain(client: HttpClient, encoding: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_encoded("200 OK", encoding, b"plain"))
        await writer.drain()

    async with raw_peer(answer) as url:
        assert (await client.request("GET", url, total_seconds=GUARD_SECONDS)).body == b"plain"


async def test_an_error_keeps_its_status_however_its_body_is_encoded(client: HttpClient) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_encoded("429 Too Many Requests", "gzip", b"not gzip at all"))
        await writer.drain()

    patience = Timeouts(read_seconds=GUARD_SECONDS)
    async with raw_peer(refuse) as url, client.stream("GET", url, timeouts=patience, body_bytes_max=1000) as answer:
        assert answer.status == 429
        with pytest.raises(CallFailed):
            await answer.read()


async def test_answers_are_asked_for_as_they_are(client: HttpClient) -> None:
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        await client.request("GET", _url_of(server), total_seconds=GUARD_SECONDS)
    assert [line for line in heads[0].lower().split(b"\r\n") if line.startswith(b"accept-encoding")] == [
        b"accept-encoding: identity"
    ]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_call_that_is_lost_is_not_sent_again(client: HttpClient, method: str) -> None:
    calls = 0

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.transport.abort()

    async with raw_peer(hang_up) as url:
        with pytest.raises(CallFailed) as failed:
            await client.request(method, url, total_seconds=GUARD_SECONDS)
    assert (failed.value.kind, calls) == ("lost", 1)


async def test_what_nobody_asked_for_is_not_the_answer_to_the_next_call(client: HttpClient) -> None:
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while await reader.readline():
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_plain(b"asked"))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, asyncio.timeout(GUARD_SECONDS):
        url = _url_of(server)
        await client.request("GET", url, total_seconds=GUARD_SECONDS)
        assert (await client.request("GET", url, total_seconds=GUARD_SECONDS)).body == b"asked"
        assert len(connections) == 1
        connections[0].write(_plain(b"not asked"))
        await _until_something_is_unread(client)
        assert (await client.request("GET", url, total_seconds=GUARD_SECONDS)).body == b"asked"
        assert len(connections) == 2
        for connection in connections:
            connection.close()


def _plain(body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _url_of(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _until_something_is_unread(client: HttpClient) -> None:
    """Nothing tells when a pooled connection has read, so this looks once in each turn of the loop."""
    assert client._transport is not None
    connector = client._transport.get_client().connector
    assert connector is not None
    ((protocol, _),) = next(iter(connector._conns.values()))
    while not protocol.should_close:
        await asyncio.sleep(0)
