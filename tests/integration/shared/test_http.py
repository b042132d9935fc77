"""The HTTP kit and the HTTP client over real sockets, with peers that misbehave."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from pydantic import BaseModel, ConfigDict

from shared.errors import Problem, Transient
from shared.http import CannotListen, HttpServer, json_response, make_app, ops_app, read_model, require_service_token
from shared.http_client import CallFailed, HttpClient, InternalApi, PeerRefused, Timeouts
from tests.support.guard import GUARD_SECONDS
from tests.support.ports import free_port
from tests.support.sockets import RawPeer, raw_peer, serving

TOKEN = "0123456789abcdef"


class Order(BaseModel):
    """A body as an example."""

    model_config = ConfigDict(extra="forbid")
    name: str
    amount: int


def _app(*, body_seconds_max: float = GUARD_SECONDS) -> web.Application:
    async def order(request: web.Request) -> web.Response:
        return json_response(await read_model(request, Order))

    async def fail(request: web.Request) -> web.Response:
        match request.match_info["how"]:
            case "problem":
                raise Problem(409, "busy", "Later.", headers={"Retry-After": "3"}, extra={"place": 7})
            case "transient":
                raise Transient("the database is away")
            case _:
                raise RuntimeError("canary")

    app = make_app(middlewares=[require_service_token(TOKEN)], body_bytes_max=1000, body_seconds_max=body_seconds_max)
    app.add_routes([web.post("/orders", order), web.get("/fail/{how}", fail), web.post("/internal/orders", order)])
    return app


@pytest.fixture
async def client() -> AsyncIterator[HttpClient]:
    client = HttpClient(connections_max=10)
    await client.start()
    yield client
    await client.stop()


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b'{"name":"a","amount":1}', "application/json", 200, None),
        (b'{"name":"a","amount":1}', "application/json; charset=utf-8", 200, None),
        (b"", "application/json", 400, "invalid_json"),
        (b"{", "application/json", 400, "invalid_json"),
        (b"\xff", "application/json", 400, "invalid_json"),
        (b"[" * 900, "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b'{"name":"a"}', "application/json", 422, "invalid_request"),
        (b'{"name":"a","amount":"canary"}', "application/json", 422, "invalid_request"),
        (b'{"name":"a","amount":1,"more":1}', "application/json", 422, "invalid_request"),
        (b'{"name":"a\\u0000","amount":1}', "application/json", 422, "invalid_text"),
        (b'{"name":"\\ud800","amount":1}', "application/json", 422, "invalid_text"),
        (b'{"name\\u0000":"a","amount":1}', "application/json", 422, "invalid_text"),
        (b'{"name":"\\uDFFF","amount":1}', "application/json", 422, "invalid_text"),
        (b'{"name":"\xed\xa0\x80","amount":1}', "application/json", 400, "invalid_json"),
        ('{"name":"a","amount":1}'.encode("utf-16"), "application/json", 400, "invalid_json"),
        ('{"name":"a","amount":1}'.encode("utf-8-sig"), "application/json", 200, None),
        (b'{"name":"\\ud83d\\ude00 \\\\u0000","amount":1}', "application/json", 200, None),
        (b"a=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"x" * 1001, "application/json", 413, "body_too_large"),
    ],
)
async def test_every_body_gets_its_exact_answer(
    client: HttpClient, body: bytes, content_type: str, status: int, code: str | None
) -> None:
    async with serving(_app()) as url:
        answer = await client.request(
            "POST", f"{url}/orders", content=body, headers={"content-type": content_type}, total_seconds=GUARD_SECONDS
        )
    assert answer.status == status
    document = json.loads(answer.body)
    assert document.get("code") == code
    assert b"canary" not in answer.body
    if code is not None:
        assert answer.headers["content-type"].startswith("application/problem+json")
        assert document["status"] == status


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/fail/problem", 409, "busy"),
        ("/fail/transient", 503, "unavailable"),
        ("/fail/bug", 500, "internal_error"),
        ("/nowhere", 404, "route_not_found"),
        ("/orders", 405, "method_not_allowed"),
        ("/internal/orders", 401, "unauthorized"),
    ],
)
async def test_every_error_is_a_problem(client: HttpClient, path: str, status: int, code: str) -> None:
    async with serving(_app()) as url:
        answer = await client.request("GET", url + path, total_seconds=GUARD_SECONDS)
    assert (answer.status, json.loads(answer.body)["code"]) == (status, code)
    assert b"canary" not in answer.body


async def test_a_body_that_trickles_is_given_up(client: HttpClient) -> None:
    async with serving(_app(body_seconds_max=0.3)) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"
        )
        await writer.drain()
        status_line = await asyncio.wait_for(reader.readline(), GUARD_SECONDS)
        writer.close()
    assert b" 408 " in status_line


@pytest.mark.parametrize(
    "garbage",
    [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nAuthorization: Bearer canary\x01\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"],
)
async def test_what_is_not_http_gets_a_problem_that_quotes_nothing(garbage: bytes) -> None:
    async with serving(_app()) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(garbage)
        answer = await asyncio.wait_for(reader.read(), GUARD_SECONDS)
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == b"400"
    assert json.loads(body)["code"] == "malformed_http"
    assert b"canary" not in answer
    assert b"aiohttp" not in answer


async def test_a_port_in_use_is_one_clear_error() -> None:
    async with serving(_app()) as url:
        taken = HttpServer(_app(), host="127.0.0.1", port=int(url.rpartition(":")[2]), drain_seconds=0)
        with pytest.raises(CannotListen, match="cannot listen on"):
            await taken.start()
        await taken.stop()


async def test_readiness_follows_its_checks(client: HttpClient) -> None:
    checks, dependencies = {"serving": True}, {"broker": False}
    ops = ops_app({"serving": lambda: checks["serving"]}, {"broker": lambda: dependencies["broker"]})
    async with serving(ops) as url:
        assert (await client.request("GET", f"{url}/readyz", total_seconds=GUARD_SECONDS)).status == 200
        checks["serving"] = False
        answer = await client.request("GET", f"{url}/readyz", total_seconds=GUARD_SECONDS)
        assert (answer.status, json.loads(answer.body)) == (503, {"serving": False, "broker": False})
        assert (await client.request("GET", f"{url}/healthz", total_seconds=GUARD_SECONDS)).status == 200
        assert (
            b"parley_http_request_seconds"
            in (await client.request("GET", f"{url}/metrics", total_seconds=GUARD_SECONDS)).body
        )


async def test_an_internal_call_carries_the_token_and_the_account(client: HttpClient) -> None:
    seen: list[tuple[str | None, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.headers.get("authorization"), request.headers.get("parley-account")))
        if request.query.get("q") == "no":
            raise Problem(404, "thing_not_found", "No.")
        return json_response({"ok": True})

    app = make_app(middlewares=[require_service_token(TOKEN)], body_bytes_max=1000)
    app.add_routes([web.get("/internal/things", answer), web.post("/internal/things", answer)])
    async with serving(app) as url:
        api = InternalApi(client, url, TOKEN, peer="things")
        assert json.loads(await api.get("/internal/things", account_id="acct_1", params={"q": "a b&c"})) == {"ok": True}
        assert json.loads(await api.post("/internal/things", Order(name="a", amount=1))) == {"ok": True}
        with pytest.raises(PeerRefused) as refused:
            await api.get("/internal/things", params={"q": "no"})
        stranger = InternalApi(client, url, "another-token-altogether", peer="things")
        with pytest.raises(PeerRefused) as unauthorized:
            await stranger.get("/internal/things")
    assert seen[0] == (f"Bearer {TOKEN}", "acct_1")
    assert (refused.value.status, refused.value.code) == (404, "thing_not_found")
    assert unauthorized.value.status == 401


async def _closes_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _cuts_the_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()


async def _cuts_the_chunks(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
    await writer.drain()


async def _bad_chunk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhalf\r\n")
    await writer.drain()


async def _bad_chunk_in_a_packet_of_its_own(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _cuts_the_chunks(reader, writer)
    await asyncio.sleep(0.05)  # or both would be read at once
    writer.write(b"zz\r\nhalf\r\n")
    await writer.drain()
    await reader.read()


async def _no_http(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await writer.drain()


async def _stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    await reader.read()


async def _never_answers(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _too_much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000)
    await writer.drain()


@pytest.mark.parametrize(
    ("behave", "kind"),
    [
        (_closes_at_once, "lost"),
        (_cuts_the_body, "lost"),
        (_cuts_the_chunks, "lost"),
        (_bad_chunk, "protocol"),
        (_bad_chunk_in_a_packet_of_its_own, "timeout"),
        (_no_http, "protocol"),
        (_stalls, "timeout"),
        (_never_answers, "timeout"),
        (_too_much, "too_large"),
    ],
)
async def test_each_way_of_failing_has_its_kind(client: HttpClient, behave: RawPeer, kind: str) -> None:
    # Where something comes at last it is waited for: on a slow machine a short patience would see a timeout everywhere.
    patience = Timeouts(read_seconds=0.2 if kind == "timeout" else GUARD_SECONDS)
    async with raw_peer(behave) as url:
        with pytest.raises(CallFailed) as failed:
            await client.request("GET", url, total_seconds=GUARD_SECONDS, timeouts=patience, body_bytes_max=1000)
    assert (failed.value.kind, failed.value.maybe_sent) == (kind, True)


async def test_a_refused_connection_was_certainly_not_sent(client: HttpClient) -> None:
    with pytest.raises(CallFailed) as failed:
        await client.request("GET", f"http://127.0.0.1:{free_port()}", total_seconds=GUARD_SECONDS)
    assert (failed.value.kind, failed.value.maybe_sent) == ("connect", False)


async def test_the_total_bound_holds_whatever_trickles(client: HttpClient) -> None:
    async def trickles(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.transport.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)

    async with raw_peer(trickles) as url:
        with pytest.raises(CallFailed) as failed:
            await client.request("GET", url, total_seconds=0.2)
    assert failed.value.kind == "timeout"


async def test_cookies_of_one_answer_are_not_sent_with_the_next_call(client: HttpClient) -> None:
    cookies: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("cookie"))
        return web.Response(headers={"Set-Cookie": "tenant=canary"})

    app = make_app(body_bytes_max=1000)
    app.add_routes([web.get("/", answer)])
    async with serving(app) as url:
        for _ in range(2):
            await client.request("GET", url, total_seconds=GUARD_SECONDS)
    assert cookies == [None, None]
