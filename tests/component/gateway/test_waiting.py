"""Snapshots, long polls and streams: woken when something happens, resumed from where a client was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from services.gateway.records import Progress
from services.gateway.routes import events
from services.gateway.store import TurnStore
from shared.ids import new_id
from tests.component.gateway.driver import PAST, Gateway, ending_of, update_of
from tests.component.gateway.peers import Peers
from tests.support.bus import eventually
from tests.support.counted import sampled
from tests.support.guard import GUARD_SECONDS

pytestmark = pytest.mark.usefixtures("by_wake_alone")

FIRST = 2**20 + 1


async def poll(gateway: Gateway, path: str, **headers: str) -> asyncio.Task[Any]:
    """A poll that is known to wait by now."""
    before = waiters(gateway)
    task = asyncio.create_task(gateway.call("GET", path, headers=headers))

    async def waits() -> bool:
        return waiters(gateway) > before

    await eventually(waits)
    return task


def waiters(gateway: Gateway) -> int:
    return sum(hub.waiters for hub in gateway.hubs)


async def test_an_unchanged_request_is_not_sent_again(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    first = await gateway.get(request["id"])
    etag = first.headers["ETag"]
    assert etag.startswith('"')
    again = await gateway.get(request["id"], **{"If-None-Match": etag})
    assert (again.status, again.body, again.headers["ETag"]) == (304, "", etag)
    await gateway.end(request)
    changed = await gateway.get(request["id"], **{"If-None-Match": etag})
    assert (changed.status, changed.body["status"]) == (200, "completed")


async def test_a_wait_without_a_version_ends_with_the_request(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    waiting = await poll(gateway, f"/v1/requests/{request['id']}", Prefer="wait=60")
    async with gateway.handling("gateway.updates", 1):
        await gateway.bus.send(update_of(request, gateway.customer.account_id))
    assert not waiting.done()
    await gateway.end(request)
    reply = await waiting
    assert (reply.body["status"], reply.headers["Preference-Applied"]) == ("completed", "wait=60")


async def test_a_wait_with_a_version_ends_with_any_change(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    etag = (await gateway.get(request["id"])).headers["ETag"]
    path = f"/v1/requests/{request['id']}"
    waiting = await poll(gateway, path, **{"Prefer": "wait=60", "If-None-Match": etag})
    await gateway.bus.send(update_of(request, gateway.customer.account_id))
    assert (await waiting).body["status"] == "in_progress"


async def test_hints_that_come_while_a_tick_is_waited_for_share_its_statement(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many: were they taken a hundred at a time, a gateway would hear a thousand hints a second and no more."""
    monkeypatch.setattr("shared.messaging.consumer._ALONE_SECONDS_MAX", GUARD_SECONDS)
    written, all_sent, sizes = TurnStore.update_requests_progressed_if_open, asyncio.Event(), []

    async def write(store: TurnStore, hints: Sequence[Progress]) -> set[str]:
        sizes.append(len(hints))
        await all_sent.wait()
        return await written(store, hints)

    monkeypatch.setattr(TurnStore, "update_requests_progressed_if_open", write)
    known = await gateway.send(await gateway.new_session())
    hints = [update_of({**known, "id": new_id("req")}, gateway.customer.account_id) for _ in range(600)]
    async with gateway.handling("gateway.updates", len(hints)):
        await asyncio.gather(*map(gateway.bus.send, hints))
        all_sent.set()
    assert sum(sizes) == len(hints)
    assert len(sizes) <= 4, sizes


async def test_a_wait_for_an_ended_request_does_not_wait(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.end(request)
    reply = await gateway.get(request["id"], Prefer="wait=60")
    assert reply.body["status"] == "completed"
    etag = reply.headers["ETag"]
    assert (await gateway.get(request["id"], **{"Prefer": "wait=60", "If-None-Match": etag})).status == 304


async def test_a_wait_that_is_up_shows_the_request_as_it_is(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    reply = await gateway.get(request["id"], Prefer="wait=1")
    assert (reply.status, reply.body["status"], reply.headers["Preference-Applied"]) == (200, "queued", "wait=1")


async def test_a_drain_answers_those_who_wait(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    waiting = await poll(gateway, f"/v1/requests/{request['id']}", Prefer="wait=60")
    gateway.drain()
    assert (await waiting).body["status"] == "queued"


async def test_event_pages_are_read_after_a_cursor_and_say_when_the_log_is_closed(
    gateway: Gateway, peers: Peers
) -> None:
    request = await gateway.send(await gateway.new_session())
    path = f"/v1/requests/{request['id']}/events"
    assert (await gateway.call("GET", path)).body == {"events": [], "next": 0, "closed": False}
    peers.add_event(FIRST, "output.delta", PAST, text="a")
    peers.add_event(FIRST + 1, "output.delta", PAST, text="b")
    page = (await gateway.call("GET", f"{path}?after={FIRST}")).body
    assert [event["data"]["text"] for event in page["events"]] == ["b"]
    assert page["next"] == FIRST + 1
    peers.log_is_closed = True
    assert (await gateway.call("GET", f"{path}?after={FIRST + 1}&wait=60")).body["closed"] is True
    assert (path.replace("/v1/", "/internal/"), gateway.customer.account_id) in peers.asked


async def test_a_reader_that_waits_is_woken_by_new_events(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    waiting = await poll(gateway, f"/v1/requests/{request['id']}/events?wait=60")
    peers.add_event(FIRST, "output.delta", PAST, text="a")
    await gateway.bus.send(update_of(request, gateway.customer.account_id))
    assert [event["cursor"] for event in (await waiting).body["events"]] == [FIRST]


class Stream:
    """A server-sent event stream as a client reads it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.buffer = ""

    async def frame(self) -> dict[str, str]:
        """The fields of the next event; comments are skipped. Empty at the end."""
        while True:
            block = await self._block()
            fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
            if "data" in fields or not block:
                return fields

    async def idle(self) -> None:
        """Return once the server has nothing more to say and waits."""
        while await self._block() != ": nothing new":
            continue

    async def _block(self) -> str:
        while "\n\n" not in self.buffer:
            chunk = await self.response.content.readany()
            if not chunk:
                return ""
            self.buffer += chunk.decode()
        block, _, self.buffer = self.buffer.partition("\n\n")
        return block


@asynccontextmanager
async def stream(gateway: Gateway, request_id: str, **headers: str) -> AsyncIterator[Stream]:
    sent = {"Authorization": f"Bearer {gateway.customer.key}", "Accept": "text/event-stream", **headers}
    url = f"{gateway.base_url}/v1/requests/{request_id}/events"
    async with gateway.http.get(url, headers=sent) as response:
        yield Stream(response)


async def test_a_stream_follows_the_log_to_its_end(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    account_id = gateway.customer.account_id
    peers.add_event(FIRST, "output.delta", PAST, text="a\nb")
    async with stream(gateway, request["id"]) as events:
        headers = events.response.headers
        assert headers["Content-Type"].startswith("text/event-stream")
        assert (headers["Server"], headers["X-Request-Id"][:5]) == ("parley", "call_")
        first = await events.frame()
        assert (first["id"], first["event"]) == (str(FIRST), "output.delta")
        assert json.loads(first["data"])["data"] == {"text": "a\nb"}
        await events.idle()
        peers.add_event(FIRST + 1, "request.completed", PAST, status="completed")
        peers.log_is_closed = True
        await gateway.bus.send(ending_of(request, account_id))
        assert (await events.frame())["event"] == "request.completed"
        assert await events.frame() == {}


async def test_a_stream_resumes_after_the_last_event_its_client_saw(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    for place in range(3):
        peers.add_event(FIRST + place, "output.delta", PAST, text=str(place))
    peers.log_is_closed = True
    async with stream(gateway, request["id"], **{"Last-Event-ID": str(FIRST + 1)}) as events:
        assert (await events.frame())["id"] == str(FIRST + 2)
        assert await events.frame() == {}
    async with stream(gateway, request["id"], **{"Last-Event-ID": str(FIRST + 2)}) as events:
        assert events.response.status == 204


async def test_a_drained_stream_ends_with_its_cursor(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    peers.add_event(FIRST, "output.delta", PAST, text="a")
    async with stream(gateway, request["id"]) as events:
        await events.frame()
        gateway.drain()
        last = await events.frame()
        assert (last["event"], last["id"]) == ("reconnect", str(FIRST))
        assert await events.frame() == {}


async def test_a_client_that_leaves_a_stream_cancels_nothing(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    peers.add_event(FIRST, "output.delta", PAST, text="a")
    async with stream(gateway, request["id"]) as events:
        await events.frame()
        events.response.close()

    async def has_left() -> bool:
        # Seen at a write; the first ones may be made before the end of the connection has arrived.
        await gateway.bus.send(update_of(request, gateway.customer.account_id))
        return waiters(gateway) == 0

    await eventually(has_left)
    assert (await gateway.get(request["id"])).body["cancel_requested_at"] is None


async def test_a_client_that_leaves_before_its_stream_begins_meets_no_error_of_ours(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await gateway.send(await gateway.new_session())
    read, reads, left = events._read, asyncio.Event(), asyncio.Event()

    async def read_slowly(*arguments: Any) -> Any:
        page = await read(*arguments)
        reads.set()
        await left.wait()
        return page

    monkeypatch.setattr(events, "_read", read_slowly)
    async with aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {gateway.customer.key}", "Accept": "text/event-stream"}
        url = f"{gateway.base_url}/v1/requests/{request['id']}/events"
        asking = asyncio.create_task(http.get(url, headers=headers).__aenter__())
        await reads.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.1)  # until its end has arrived; too soon and the answer goes where nobody reads it
    failed = answered(500)
    left.set()

    async def is_over() -> bool:
        return waiters(gateway) == 0

    await eventually(is_over)
    assert answered(500) == failed


def answered(status: int) -> float:
    return sampled("parley_http_request_seconds_count", status=str(status))
