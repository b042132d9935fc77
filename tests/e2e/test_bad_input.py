"""Malformed requests to the gateway: each gets its exact status and code, and none of them leaves a row behind."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import pytest

from services.gateway.api_keys import new_key
from shared.postgres import Database
from tests.support.bus import eventually
from tests.support.guard import GUARD_SECONDS
from tests.support.parley import Parley
from tests.support.stack import Account, Stack

TABLES: Final = ("accounts", "api_keys", "eligibilities", "sessions", "requests", "parked_messages")
JSON: Final = ("Content-Type", "application/json")
POST_REQUEST: Final = "POST /v1/sessions/{session}/requests"
GET_REQUEST: Final = "GET /v1/requests/{request}"
UNKNOWN: Final = "0" * 32
OVER_1_MIB: Final = "a" * (2**20 + 1)


@dataclass(frozen=True)
class Case:
    """`line` is method and path. Headers beside Authorization; `authorization` None sends none."""

    name: str
    line: str
    status: int
    code: str
    body: bytes | str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    authorization: str | None = "Bearer {key}"
    raw: bytes | None = None
    """Sent as it stands, instead of all the above."""


def field(name: str, body: str, code: str = "invalid_request") -> Case:
    """A POST of a request whose body is JSON but not as documented."""
    return Case(name, POST_REQUEST, 422, code, body, (JSON,))


def key_header(name: str, *values: str) -> Case:
    """A good body under a malformed Idempotency-Key."""
    headers = tuple(("Idempotency-Key", value) for value in values)
    return Case(name, POST_REQUEST, 400, "invalid_idempotency_key", '{"input":"x"}', (JSON, *headers))


def query(name: str, line: str, code: str = "invalid_parameter") -> Case:
    return Case(name, line, 422, code)


def raw(name: str, text: str, status: int = 400, code: str = "malformed_http") -> Case:
    """Something that is not HTTP."""
    return Case(name, "", status, code, raw=text.encode("latin-1"))


CASES: Final = (
    # Who calls.
    Case("no key", "GET /v1/sessions", 401, "invalid_api_key", authorization=None),
    Case("an empty key", "GET /v1/sessions", 401, "invalid_api_key", authorization="Bearer "),
    Case("a scheme alone", "GET /v1/sessions", 401, "invalid_api_key", authorization="Bearer"),
    Case("another scheme", "GET /v1/sessions", 401, "invalid_api_key", authorization="Basic {key}"),
    Case("a key with a typo", "GET /v1/sessions", 401, "invalid_api_key", authorization="Bearer {key}x"),
    Case("a key nobody made", "GET /v1/sessions", 401, "invalid_api_key", authorization="Bearer {unknown_key}"),
    Case("a key in the URL", "GET /v1/sessions?api_key={key}", 401, "invalid_api_key", authorization=None),
    Case("two keys", "GET /v1/sessions", 401, "invalid_api_key", headers=(("Authorization", "Bearer {key}"),)),
    Case("a customer's key for administration", "GET /v1/admin/accounts", 403, "insufficient_scope"),
    Case("an administrator's key", "GET /v1/sessions", 403, "insufficient_scope", authorization="Bearer {admin_key}"),
    # Where to.
    Case("an unknown route", "GET /v1/nothing", 404, "route_not_found"),
    Case("the root", "GET /", 404, "route_not_found"),
    Case("an internal route", "GET /internal/requests/{request}/ledger", 404, "route_not_found"),
    Case("a wrong method", "PUT /v1/sessions", 405, "method_not_allowed"),
    Case("an unknown session", f"GET /v1/sessions/ses_{UNKNOWN}", 404, "session_not_found"),
    Case("an id of another kind", "GET /v1/sessions/{request}", 404, "session_not_found"),
    Case("an id in capitals", f"GET /v1/requests/REQ_{UNKNOWN}", 404, "request_not_found"),
    Case("an id with a NUL", "GET /v1/requests/req_%00", 404, "request_not_found"),
    Case("an id that is not UTF-8", "GET /v1/requests/req_%ff%fe", 404, "request_not_found"),
    Case("an id that climbs", "GET /v1/requests/..%2f..%2fadmin%2faccounts", 404, "request_not_found"),
    Case("an id with SQL", "GET /v1/requests/req_'%20OR%20'1'='1", 404, "request_not_found"),
    Case("a long id", "GET /v1/requests/req_" + "a" * 4000, 404, "request_not_found"),
    Case(
        "a turn of an unknown session",
        f"POST /v1/sessions/ses_{UNKNOWN}/requests",
        404,
        "session_not_found",
        '{"input":"x"}',
        (JSON,),
    ),
    # Bodies that are not JSON.
    Case("no body", POST_REQUEST, 400, "invalid_json", "", (JSON,)),
    Case("half a body", POST_REQUEST, 400, "invalid_json", '{"input":', (JSON,)),
    Case("a trailing comma", POST_REQUEST, 400, "invalid_json", '{"input":"x",}', (JSON,)),
    Case("a body that is not UTF-8", POST_REQUEST, 400, "invalid_json", b'{"input":"\xff\xfe"}', (JSON,)),
    Case("a body nested without end", POST_REQUEST, 400, "invalid_json", "[" * 100_000, (JSON,)),
    Case("a number without end", POST_REQUEST, 400, "invalid_json", '{"input":' + "9" * 5000 + "}", (JSON,)),
    Case("a form", POST_REQUEST, 415, "unsupported_media_type", "input=x", (("Content-Type", "text/plain"),)),
    Case(
        "a body that is compressed",
        POST_REQUEST,
        415,
        "unsupported_content_encoding",
        gzip.compress(b'{"input":"x"}'),
        (JSON, ("Content-Encoding", "gzip")),
    ),
    Case(
        "a body that is not what it says",
        POST_REQUEST,
        415,
        "unsupported_content_encoding",
        '{"input":"x"}',
        (JSON, ("Content-Encoding", "deflate")),
    ),
    Case("a body too large", POST_REQUEST, 413, "body_too_large", "a" * (8 * 2**20), (JSON,)),
    # JSON that is not as documented.
    field("a list", "[]"),
    field("null", "null"),
    field("no input", "{}"),
    field("input null", '{"input":null}'),
    field("input a number", '{"input":1}'),
    field("an empty input", '{"input":""}'),
    field("an empty list", '{"input":[]}'),
    field("an unknown field", '{"input":"x","stream":true}'),
    field("a turn of the assistant", '{"input":[{"role":"assistant","content":"x"}]}'),
    field("instructions in a turn", '{"input":[{"role":"system","content":"x"}]}'),
    field("an item without content", '{"input":[{"role":"user"}]}'),
    field("an unknown item", '{"input":[{"type":"image","url":"x"}]}'),
    field("a NUL in the text", '{"input":"a\\u0000b"}', "invalid_text"),
    field("a NUL in a name", '{"input":"x","metadata":{"a\\u0000":"b"}}', "invalid_text"),
    field("half a surrogate pair", '{"input":"\\ud800"}', "invalid_text"),
    field("more input than is taken", json.dumps({"input": OVER_1_MIB}), "input_too_large"),
    field("a temperature in words", '{"input":"x","temperature":"1"}'),
    field("a temperature that is no number", '{"input":"x","temperature":NaN}'),
    field("an infinite temperature", '{"input":"x","temperature":1e999}'),
    field("too hot", '{"input":"x","temperature":2.01}'),
    field("no output at all", '{"input":"x","max_output_tokens":0}'),
    field("half a token", '{"input":"x","max_output_tokens":1.5}'),
    field("no time", '{"input":"x","deadline_seconds":0}'),
    field("too much time", '{"input":"x","deadline_seconds":86401}'),
    field("too much metadata", json.dumps({"input": "x", "metadata": {str(n): "v" for n in range(17)}})),
    field("metadata in numbers", '{"input":"x","metadata":{"a":1}}'),
    field("an unknown model", '{"input":"x","model":"no-such-model"}', "model_not_found"),
    field("a model that climbs", '{"input":"x","model":"../../etc"}'),
    field("tools that are no list", '{"input":"x","tools":{}}'),
    field("a tool without a name", '{"input":"x","tools":[{"type":"function"}]}'),
    field("an unknown format", '{"input":"x","response_format":{"type":"xml"}}'),
    field("a format without its schema", '{"input":"x","response_format":{"type":"json_schema"}}'),
    Case("a session for somebody else", "POST /v1/sessions", 422, "invalid_request", '{"account_id":"a"}', (JSON,)),
    # Headers with a grammar of their own.
    key_header("an empty key header", ""),
    key_header("a key without its end", '"abc'),
    key_header("a key too long", "k" * 256),
    key_header("a key beyond ASCII", "schlüssel"),
    key_header("two idempotency keys", "a", "b"),
    Case(
        "an event id that is none",
        GET_REQUEST + "/events",
        400,
        "invalid_last_event_id",
        headers=(("Last-Event-ID", "x"),),
    ),
    Case("another Expect", "GET /v1/sessions", 417, "expectation_failed", headers=(("Expect", "foo"),)),
    # Query strings.
    query("an empty page", "GET /v1/sessions?limit=0"),
    query("too large a page", "GET /v1/sessions?limit=101"),
    query("a limit in words", "GET /v1/sessions?limit=ten"),
    query("a limit twice", "GET /v1/sessions?limit=1&limit=2"),
    query("an unknown parameter", "GET /v1/sessions?page=2"),
    query("an unknown status", "GET /v1/requests?status=done"),
    query("a cursor that was never given", "GET /v1/sessions?cursor=bm9wZQ", "invalid_cursor"),
    query("a cursor with a NUL", "GET /v1/sessions?cursor=%00", "invalid_cursor"),
    query("a place before the start", GET_REQUEST + "/events?after=-1"),
    query("a place beyond all numbers", GET_REQUEST + "/events?after=9223372036854775808"),
    query("too long a wait", GET_REQUEST + "/events?wait=61"),
    # Not HTTP at all.
    raw("no request line", "hello\r\n\r\n"),
    raw("an unknown version", "GET /v1/sessions HTTP/9.9\r\nHost: x\r\n\r\n"),
    raw("a header without a colon", "GET /v1/sessions HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n"),
    raw("a NUL in a header", "GET /v1/sessions HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n"),
    raw(
        "a header too long",
        f"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nA: {'b' * 100_000}\r\n\r\n",
        431,
        "header_too_long",
    ),
    raw("a URL too long", f"GET /v1/{'a' * 9_000} HTTP/1.1\r\nHost: x\r\n\r\n", 431, "header_too_long"),
    raw("a negative length", "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}"),
    raw(
        "two ways to end a body",
        "POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    ),
)


@dataclass(frozen=True)
class Target:
    """The gateway, what the cases name, and its database."""

    base_url: str
    names: dict[str, str]
    database: Database

    async def row_counts(self) -> dict[str, int]:
        return {table: await self.database.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}


@pytest.fixture
async def target(stack: Stack, account: Account, parley: Parley) -> AsyncIterator[Target]:
    database = Database(stack.urls["GATEWAY_DATABASE_URL"], service="tests", pool_max=2)
    await database.start()
    session_id = await parley.session()
    request_id = await parley.post(session_id, "hello")
    await parley.wait_ended(request_id)
    await eventually(lambda: _is_told_everything(stack, database))
    names = {
        "key": account.key,
        "admin_key": stack.admin_key(),
        "unknown_key": new_key("account", "a pepper that nobody has").text,
        "session": session_id,
        "request": request_id,
    }
    yield Target(stack.url("gateway"), names, database)
    await database.stop()


async def _is_told_everything(stack: Stack, gateway: Database) -> bool:
    """Whether the gateway has every decision that billing has made: those that arrive later would leave rows too."""
    query = "SELECT account_id, sequence FROM eligibilities"
    billing = Database(stack.urls["BILLING_DATABASE_URL"], service="tests", pool_max=1)
    await billing.start()
    made = await billing.fetch(query)
    await billing.stop()
    return set(made) <= set(await gateway.fetch(query))


def test_there_are_cases_enough_and_each_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 45


async def test_malformed_requests_get_their_answer_and_store_nothing(target: Target) -> None:
    before = await target.row_counts()
    wrong = []
    for case in CASES:
        status, code = await answer(target, case)
        if (status, code) != (case.status, case.code):
            wrong.append(f"{case.name}: expected {case.status} {case.code}, got {status} {code}")
    assert not wrong, "\n".join(wrong)
    assert await target.row_counts() == before


async def answer(target: Target, case: Case) -> tuple[int, str | None]:
    """Status and problem code; written byte by byte, since a client library would mend some of these."""
    address = urlsplit(target.base_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**22)
    try:
        writer.write(case.raw if case.raw is not None else as_bytes(target, case))
        async with asyncio.timeout(GUARD_SECONDS):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    content_types = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-type:")]
    is_problem = any(b"application/problem+json" in line for line in content_types)
    return int(head.split(b" ", 2)[1]), json.loads(body)["code"] if is_problem else None


def as_bytes(target: Target, case: Case) -> bytes:
    method, _, path = named(case.line, target).partition(" ")
    lines: list[str] = [f"{method} {path} HTTP/1.1", "Host: parley", "Connection: close"]
    headers: Sequence[tuple[str, str]] = case.headers
    if case.authorization is not None:
        headers = (("Authorization", case.authorization), *headers)
    lines += [f"{name}: {named(value, target)}" for name, value in headers]
    body = case.body.encode() if isinstance(case.body, str) else case.body or b""
    if case.body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def named(text: str, target: Target) -> str:
    """`{key}` and the other names, filled in; other braces stay as they are."""
    for name, value in target.names.items():
        text = text.replace("{" + name + "}", value)
    return text
