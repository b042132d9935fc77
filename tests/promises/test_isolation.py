"""P7: another account's id answers like an id that does not exist, on every route, and changes and tells nothing."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import aiohttp
import pytest

from deploy.local.environment import REPOSITORY
from deploy.local.stack import Stack
from services.gateway.pagination import List, encode_cursor
from shared.ids import new_id
from tests.promises.evidence import Evidence, Rows, changed, gather_evidence
from tests.support.parley import Parley
from tests.support.stack import Account, subscribed_account

OF_THE_CALL: Final = frozenset({"date", "x-request-id"})
PAGES: Final = {"success_url": "https://shop.example/done", "cancel_url": "https://shop.example/back"}

# The body of a call that would succeed if its ids were the caller's own.
BODIES: Final[Mapping[str, dict[str, Any]]] = {
    "POST /v1/sessions": {},
    "POST /v1/sessions/{session_id}/requests": {"input": "hello"},
    "POST /v1/billing/checkout": {"plan": "basic", **PAGES},
    "POST /v1/billing/portal": {"return_url": "https://shop.example/account"},
    "POST /v1/admin/accounts": {"name": "x"},
    "POST /v1/admin/accounts/{account_id}/keys": {},
}
# Where an id comes in beside the path: the cursors that a list has given, the names under which something is repeated.
CURSORS: Final[Mapping[str, List]] = {
    "GET /v1/sessions": "sessions",
    "GET /v1/requests": "requests",
    "GET /v1/sessions/{session_id}/requests": "session_requests",
    "GET /v1/sessions/{session_id}/messages": "messages",
}
KEYED: Final = ("POST /v1/sessions", "POST /v1/sessions/{session_id}/requests")
READS: Final = ("/v1/sessions", "/v1/requests", "/v1/usage", "/v1/eligibility")


@dataclass
class Owned:
    """An account, and everything of it that has an id."""

    account: Account
    session_id: str
    request_id: str
    key_id: str
    idempotency_key: str
    etag: str

    @property
    def ids(self) -> dict[str, str]:
        return {
            "session_id": self.session_id,
            "request_id": self.request_id,
            "account_id": self.account.id,
            "key_id": self.key_id,
        }

    @property
    def traces(self) -> tuple[str, ...]:
        """What no answer to anybody else may hold."""
        made_of = (self.account.customer_id, self.account.subscription_id, self.idempotency_key, self.etag.strip('"'))
        return (*self.ids.values(), *made_of)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass
class Estate:
    """Two accounts that have the same kinds of things, and a way to call as either or as an administrator."""

    stack: Stack
    http: aiohttp.ClientSession
    owner: Owned
    stranger: Owned

    async def call(
        self,
        route: str,
        ids: Mapping[str, str],
        *,
        key: str = "",
        query: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        method, _, path = route.partition(" ")
        sent = {"authorization": f"Bearer {key or self.stranger.account.key}", **(headers or {})}
        url = self.stack.url("gateway") + path.format(**ids) + query
        async with self.http.request(method, url, headers=sent, json=BODIES.get(route)) as response:
            told = tuple(sorted((n, v) for n, v in response.headers.items() if n.lower() not in OF_THE_CALL))
            return Answer(response.status, told, await response.read())


def routes(scope: str) -> list[str]:
    """`GET /v1/requests/{request_id}`, as the OpenAPI document has them."""
    document = json.loads((REPOSITORY / "openapi.json").read_text())
    found = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    return [route for route in found if ("/admin/" in route) == (scope == "admin")]


def unknown_ids() -> dict[str, str]:
    return {
        "session_id": new_id("ses"),
        "request_id": new_id("req"),
        "account_id": new_id("acct"),
        "key_id": new_id("key"),
    }


async def owned(stack: Stack, http: aiohttp.ClientSession, name: str) -> Owned:
    account = await asyncio.to_thread(subscribed_account, stack, name)
    parley, idempotency_key = Parley(http, stack.url("gateway"), account.key), uuid4().hex
    session_id = await parley.session(instructions=f"of {name}")
    made = await parley.call(
        "POST",
        f"/v1/sessions/{session_id}/requests",
        body={"input": f"of {name}"},
        headers={"idempotency-key": idempotency_key},
    )
    request_id = made.body["id"]
    await parley.wait_ended(request_id)
    await parley.wait_charged(request_id)
    etag = (await parley.call("GET", f"/v1/requests/{request_id}")).headers["ETag"]
    admin = Parley(http, stack.url("gateway"), stack.admin_key())
    [key] = (await admin.ask("GET", f"/v1/admin/accounts/{account.id}/keys"))["data"]
    return Owned(account, session_id, request_id, key["id"], idempotency_key, etag)


@pytest.fixture
async def estate(stack: Stack, http: aiohttp.ClientSession) -> Estate:
    return Estate(stack, http, *await asyncio.gather(owned(stack, http, "owner"), owned(stack, http, "stranger")))


def test_every_route_with_a_body_or_a_cursor_has_its_case() -> None:
    document = json.loads((REPOSITORY / "openapi.json").read_text())
    with_body, with_cursor, with_key = set(), set(), set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            route, names = f"{method.upper()} {path}", {entry["name"] for entry in operation.get("parameters", ())}
            with_body |= {route} if "requestBody" in operation else set()
            with_cursor |= {route} if "cursor" in names and "/admin/" not in path else set()
            with_key |= {route} if "Idempotency-Key" in names else set()
    assert (with_body, with_cursor, with_key) == (set(BODIES), set(CURSORS), set(KEYED))


async def test_a_foreign_id_answers_like_one_that_does_not_exist_and_changes_nothing(estate: Estate) -> None:
    owner = estate.owner
    guesses = {"If-None-Match": owner.etag, "Last-Event-ID": "1", "Idempotency-Key": owner.idempotency_key}
    named = [route for route in routes("account") if "{" in route]
    assert len(named) >= 9
    async with gather_evidence(estate.stack, estate.http) as evidence:
        before, asked_before = await evidence.rows(), await internal_calls(evidence)
        for route in named:
            for headers in ({}, guesses, {"Accept": "text/event-stream"}, {"Prefer": "wait=5"}):
                foreign = await estate.call(route, owner.ids, headers=headers)
                unknown = await estate.call(route, unknown_ids(), headers=headers)
                assert foreign.status == 404, route
                assert foreign == unknown, route
        assert changed(before, await evidence.rows()) == {}
        # Neither is known inside either: the time of an answer tells nothing that a look at one index does not.
        assert await internal_calls(evidence) == asked_before


async def test_foreign_ids_in_cursors_and_keys_name_nothing(estate: Estate) -> None:
    owner, mine = estate.owner, estate.stranger
    async with gather_evidence(estate.stack, estate.http) as evidence:
        before = await evidence.rows()
        for route, name in CURSORS.items():
            if "{" in route:
                continue  # its cursors are places in a session, the session is in the path
            position = owner.session_id if name == "sessions" else owner.request_id
            # In the order of the list nothing lies between the two.
            neighbour = position[:-1] + ("0" if position[-1] != "0" else "1")
            foreign, unknown = [
                await estate.call(route, mine.ids, query=f"?cursor={encode_cursor(name, place)}")
                for place in (position, neighbour)
            ]
            assert (foreign.status, foreign) == (200, unknown), route
            assert traces_in(owner, [foreign]) == [], route
        for route in KEYED:
            answer = await estate.call(route, mine.ids, headers={"Idempotency-Key": owner.idempotency_key})
            assert answer.status in (201, 202)
            assert "Idempotent-Replayed" not in dict(answer.headers)
            assert traces_in(owner, [answer]) == [], route
        await evidence.quiet()
        assert of_account(changed(before, await evidence.rows()), owner) == []


async def test_lists_counts_and_usage_tell_nothing_of_what_others_do(estate: Estate) -> None:
    before = [await estate.call(f"GET {path}", {}) for path in READS]
    parley = Parley(estate.http, estate.stack.url("gateway"), estate.owner.account.key)
    for _ in range(3):
        await parley.wait_ended(await parley.post(estate.owner.session_id, "more"))
    after = [await estate.call(f"GET {path}", {}) for path in READS]
    assert after == before
    assert traces_in(estate.owner, after) == []
    own = [await estate.call(f"GET {path}", {}, key=estate.owner.account.key) for path in READS]
    assert traces_in(estate.owner, own) != [], "the traces must be such as answers have"


async def test_routes_without_an_id_act_on_the_caller_alone(estate: Estate) -> None:
    plain = [route for route in routes("account") if "{" not in route]
    async with gather_evidence(estate.stack, estate.http) as evidence:
        before = await evidence.rows()
        answers = [await estate.call(route, {}) for route in plain]
        assert [answer.status for answer in answers if answer.status >= 300] == []
        assert traces_in(estate.owner, answers) == []
        await evidence.quiet()
        assert of_account(changed(before, await evidence.rows()), estate.owner) == []


async def test_administration_is_closed_to_accounts_and_keeps_their_keys_apart(estate: Estate) -> None:
    async with gather_evidence(estate.stack, estate.http) as evidence:
        before = await evidence.rows()
        for route in routes("admin"):
            answers = [await estate.call(route, ids) for ids in (estate.owner.ids, estate.stranger.ids, unknown_ids())]
            assert {answer.status for answer in answers} == {403}, route
            assert len(set(answers)) == 1, route
        revoke = "DELETE /v1/admin/accounts/{account_id}/keys/{key_id}"
        crossed = {**estate.stranger.ids, "key_id": estate.owner.key_id}
        made_up = {**estate.stranger.ids, "key_id": new_id("key")}
        admin = estate.stack.admin_key()
        assert (await estate.call(revoke, crossed, key=admin)).status == 404
        assert await estate.call(revoke, crossed, key=admin) == await estate.call(revoke, made_up, key=admin)
        assert changed(before, await evidence.rows()) == {}


def traces_in(owner: Owned, answers: list[Answer]) -> list[str]:
    return [trace for trace in owner.traces for answer in answers if trace in f"{answer.headers} {answer.body!r}"]


def of_account(differences: Rows, owner: Owned) -> list[str]:
    """The differences in rows that belong to the owner or name anything of it."""
    return [row for rows in differences.values() for row in rows if any(trace in row for trace in owner.ids.values())]


async def internal_calls(evidence: Evidence) -> dict[str, str]:
    """How often the other services were asked anything, by process and route."""
    counted = re.compile(r'^parley_http_request_seconds_count\{(.*route="/internal/.*)\} (\S+)$', re.MULTILINE)
    return {
        f"{name} {labels}": count
        for name, page in (await evidence.metrics()).items()
        for labels, count in counted.findall(page)
    }
