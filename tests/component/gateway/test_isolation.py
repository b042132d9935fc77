"""What belongs to one account does not exist for another, on any route; and no route works without its kind of key."""

from __future__ import annotations

import re

import pytest

from services.gateway.routes.table import ROUTES
from shared.ids import new_id
from tests.component.gateway.driver import Gateway

OWNED = [route for route in ROUTES if route.scope == "account" and "{" in route.path]
BODIES = {"/v1/sessions/{session_id}/requests": {"input": "hello"}}
NO_KEYS = ("", "Bearer ", "Bearer pk_live_x", "Basic {key}", "Bearer {key}x")


async def test_a_foreign_id_an_unknown_id_and_no_id_get_the_same_answer(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    request = await gateway.send(session_id)
    stranger = await gateway.new_customer()
    before = await gateway.dump()
    for route in OWNED:
        answers = []
        for ids in (
            {"session_id": session_id, "request_id": request["id"]},
            {"session_id": new_id("ses"), "request_id": new_id("req")},
            {"session_id": "nonsense", "request_id": "req_%00"},
        ):
            reply = await gateway.call(route.method, route.path.format(**ids), BODIES.get(route.path), key=stranger.key)
            answers.append((reply.status, reply.body))
        assert answers[0][0] == 404, route.path
        assert answers[0] == answers[1] == answers[2], route.path
    assert await gateway.dump() == before


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/requests"])
async def test_lists_hold_only_what_is_the_callers_own(gateway: Gateway, path: str) -> None:
    await gateway.send(await gateway.new_session())
    stranger = await gateway.new_customer()
    assert len((await gateway.call("GET", path)).body["data"]) == 1
    assert (await gateway.call("GET", path, key=stranger.key)).body == {"data": [], "next": None}


async def test_every_route_refuses_no_key_a_wrong_key_and_a_key_of_the_other_kind(gateway: Gateway) -> None:
    keys = {"account": gateway.customer.key, "admin": (await gateway.new_customer(scope="admin")).key}
    for route in ROUTES:
        path = re.sub(r"{\w+}", "x", route.path)
        for form in NO_KEYS:
            headers = {"Authorization": form.format(key=keys[route.scope])}
            reply = await gateway.call(route.method, path, headers=headers)
            assert (reply.status, reply.code) == (401, "invalid_api_key"), (route.path, form)
            assert reply.headers["WWW-Authenticate"] == "Bearer"
        reply = await gateway.call(route.method, path, key=keys["account" if route.scope == "admin" else "admin"])
        assert (reply.status, reply.code) == (403, "insufficient_scope"), route.path
