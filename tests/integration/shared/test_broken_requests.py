"""What clients send or leave out, on real sockets: each is the client's affair and never an error of ours."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Final

import pytest
import uvloop
from aiohttp import web

from shared import http_client
from shared.http import KEEP_ALIVE_SECONDS, RouteHandler, json_response, make_app, read_body
from shared.metrics import exposition
from tests.support.guard import GUARD_SECONDS
from tests.support.sockets import connected, serving

PLAIN: Final = b'{"name":"a"}'
GOOGLE_IDLE_SECONDS: Final = 600


async def _upload(request: web.Request) -> web.Response:
    return json_response({"bytes": len(await read_body(request))})


async def _refuse(_: web.Request) -> web.Response:
    raise web.HTTPConflict


def _app(path: str = "/uploads", *steps: Callable[..., object]) -> web.Application:
    app = make_app(middlewares=steps, body_bytes_max=10_000, body_seconds_max=GUARD_SECONDS)  # type: ignore[arg-type]
    app.add_routes([web.post(path, _upload), web.get("/refused", _refuse)])
    return app


def _head(path: str = "/uploads", *headers: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""]).encode()


class Watch:
    """Tells when a call's head was read, and when its handler is done."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, request: web.Request, handler: RouteHandler) -> web.StreamResponse:
        self.begun.set()
        try:
            return await handler(request)
        finally:
            self.ended.set()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(GUARD_SECONDS):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split(" ")[1]), headers, body


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("leaving", ["at_once", "closed", "half_closed", "aborted"])
def test_a_client_that_is_lost_in_its_body_is_no_error_of_ours(
    leaving: str, new_loop: Callable[[], asyncio.AbstractEventLoop], capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"/lost-{leaving}-{new_loop.__module__}"

    async def lose_one() -> None:
        watch = Watch()
        async with serving(_app(path, watch)) as url, asyncio.timeout(GUARD_SECONDS):
            async with connected(url) as (_, writer):
                writer.write(_head(path, "Content-Length: 100") + b"{}")
                if leaving != "at_once":
                    await watch.begun.wait()
                if leaving == "half_closed":
                    writer.write_eof()
                    await watch.ended.wait()
                if leaving == "aborted":
                    writer.transport.abort()
            await watch.ended.wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(lose_one())
    counted = [
        line for line in exposition()[0].decode().splitlines() if f'_count{{method="POST",route="{path}"' in line
    ]
    assert [line.partition("status=")[2] for line in counted] == ['"400"} 1.0']
    assert "http.failed" not in capsys.readouterr().out


ENCODED: Final = {
    "no gzip": ("gzip", PLAIN),
    "no deflate": ("deflate", PLAIN),
    "no brotli": ("br", PLAIN),
    "no zstd": ("zstd", PLAIN),
    "no two layers": ("gzip, gzip", PLAIN),
    "an unknown encoding": ("rot13", PLAIN),
    "gzip": ("gzip", gzip.compress(PLAIN)),
    "half of gzip": ("gzip", gzip.compress(PLAIN)[:-9]),
    "half of deflate": ("deflate", zlib.compress(PLAIN)[:-5]),
}


@pytest.mark.parametrize("in_one_write", [True, False])
@pytest.mark.parametrize("case", ENCODED)
async def test_an_encoded_body_is_refused_whether_or_not_it_is_what_it_says(case: str, in_one_write: bool) -> None:
    encoding, body = ENCODED[case]
    watch = Watch()
    async with serving(_app("/uploads", watch)) as url, connected(url) as (reader, writer):
        writer.write(_head("/uploads", f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}"))
        if not in_one_write:
            await asyncio.wait_for(watch.begun.wait(), GUARD_SECONDS)
        writer.write(body)
        status, headers, text = await _answer(reader)
    assert (status, json.loads(text)["code"]) == (415, "unsupported_content_encoding")
    assert headers["content-type"].startswith("application/problem+json")


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_a_plain_body_may_say_that_it_is_plain(encoding: str) -> None:
    async with serving(_app()) as url, connected(url) as (reader, writer):
        writer.write(_head("/uploads", f"Content-Encoding: {encoding}", f"Content-Length: {len(PLAIN)}") + PLAIN)
        status, _, text = await _answer(reader)
    assert (status, json.loads(text)) == (200, {"bytes": len(PLAIN)})


@pytest.mark.parametrize("path", ["/uploads", "/nowhere"])
async def test_an_expectation_that_nobody_knows_is_a_problem(path: str) -> None:
    async with serving(_app()) as url, connected(url) as (reader, writer):
        writer.write(_head(path, "Expect: canary", "Content-Length: 0"))
        status, headers, text = await _answer(reader)
    assert (status, json.loads(text)["code"]) == (417, "expectation_failed")
    assert headers["content-type"].startswith("application/problem+json")
    assert headers["x-request-id"].startswith("call_")
    assert b"canary" not in text


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on() -> None:
    async with serving(_app()) as url, connected(url) as (reader, writer):
        writer.write(_head("/uploads", "Expect: 100-Continue", f"Content-Length: {len(PLAIN)}"))
        async with asyncio.timeout(GUARD_SECONDS):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(PLAIN)
        status, _, text = await _answer(reader)
    assert (status, json.loads(text)) == (200, {"bytes": len(PLAIN)})


@pytest.mark.parametrize(
    "head", [_head("/uploads", f"A: canary{'b' * 9_000}"), _head(f"/canary{'a' * 9_000}", method="GET")]
)
async def test_what_is_too_long_in_a_head_is_told_with_its_limit(head: bytes) -> None:
    async with serving(_app()) as url, connected(url) as (reader, writer):
        writer.write(head)
        status, _, text = await _answer(reader)
    problem = json.loads(text)
    assert (status, problem["status"], problem["code"]) == (431, 431, "header_too_long")
    assert "8190 bytes" in problem["detail"]
    assert b"canary" not in text


async def test_too_many_headers_are_told() -> None:
    async with serving(_app()) as url, connected(url) as (reader, writer):
        writer.write(_head("/uploads", *(f"A{number}: b" for number in range(200))))
        status, _, text = await _answer(reader)
    assert (status, json.loads(text)["code"]) == (400, "malformed_http")
    assert "too many headers" in json.loads(text)["detail"]


async def test_a_refusal_of_the_library_has_one_code_and_one_status() -> None:
    async with serving(_app()) as url, connected(url) as (reader, writer):
        writer.write(_head("/refused", method="GET"))
        status, _, text = await _answer(reader)
    assert (status, json.loads(text)["code"]) == (400, "http_error")


async def test_an_idle_connection_outlives_balancers_and_clients_but_not_the_stop() -> None:
    assert KEEP_ALIVE_SECONDS > GOOGLE_IDLE_SECONDS > http_client._PEER_IDLE_SECONDS
    async with asyncio.timeout(GUARD_SECONDS), serving(_app()) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 404 Not Found\r\n"
    async with asyncio.timeout(GUARD_SECONDS):
        assert (await reader.read()).endswith(b"}")
    writer.close()
