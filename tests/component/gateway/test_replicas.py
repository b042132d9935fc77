"""Two replicas of the gateway: which of them a client talks to makes no difference."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.gateway.app import build
from tests.component.gateway.driver import Gateway, start_gateway, update_of
from tests.component.gateway.test_waiting import poll
from tests.support.bus import eventually
from tests.support.ports import free_port

pytestmark = pytest.mark.usefixtures("by_wake_alone")

KEYS = 15
POSTS_PER_REPLICA = 4


async def test_one_key_at_two_replicas_at_once_is_one_request(gateway: Gateway, second: Gateway) -> None:
    session_id = await gateway.new_session()
    path = f"/v1/sessions/{session_id}/requests"
    for number in range(KEYS):
        headers = {"Idempotency-Key": f"key {number}"}
        replies = await asyncio.gather(
            *(
                replica.call("POST", path, {"input": "hello"}, headers=headers)
                for replica in (gateway, second)
                for _ in range(POSTS_PER_REPLICA)
            )
        )
        assert {reply.status for reply in replies} == {202}
        assert len({reply.body["id"] for reply in replies}) == 1
        fresh = [reply for reply in replies if "Idempotent-Replayed" not in reply.headers]
        assert len(fresh) == 1
    session = (await second.call("GET", f"/v1/sessions/{session_id}")).body
    assert session["open_requests"] == KEYS


@pytest.mark.usefixtures("by_wake_alone")
async def test_a_waiter_at_one_replica_hears_what_another_one_did(gateway: Gateway, second: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    etag = (await second.get(request["id"])).headers["ETag"]
    headers = {"Prefer": "wait=60", "If-None-Match": etag}
    waiting = [await poll(replica, f"/v1/requests/{request['id']}", **headers) for replica in (gateway, second)]
    await gateway.bus.send(update_of(request, gateway.customer.account_id))
    assert [reply.body["status"] for reply in await asyncio.gather(*waiting)] == ["in_progress", "in_progress"]
    waiting = [await poll(replica, f"/v1/requests/{request['id']}", Prefer="wait=60") for replica in (gateway, second)]
    await gateway.end(request)
    assert [reply.body["status"] for reply in await asyncio.gather(*waiting)] == ["completed", "completed"]


async def test_a_full_account_is_refused_until_something_of_it_ends(gateway: Gateway) -> None:
    async with contextlib.AsyncExitStack() as stack:
        used = gateway.settings.model_copy(update={"http_port": free_port(), "account_queue_max": 2})
        narrow = await start_gateway(stack, build(used), used, gateway.bus)
        session_id = await narrow.new_session()
        first, _ = await narrow.send(session_id), await narrow.send(session_id)
        refused = await narrow.call("POST", f"/v1/sessions/{session_id}/requests", {"input": "hello"})
        assert (refused.status, refused.code) == (429, "account_queue_full")
        await narrow.end(first)

        async def is_accepted() -> bool:
            return (await narrow.call("POST", f"/v1/sessions/{session_id}/requests", {"input": "x"})).status == 202

        await eventually(is_accepted)
