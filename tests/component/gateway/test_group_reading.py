"""Thousands may wait: what they read they read together, and what nobody heard of is found all the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from services.gateway.dispatch import Outbox
from services.gateway.store import RequestStore
from services.gateway.waiting import Hub
from shared.ids import new_id
from shared.postgres import Database
from tests.component.gateway.driver import CALL_SECONDS_MAX, PAST, Gateway, ending_of, update_of
from tests.component.gateway.peers import Peers
from tests.component.gateway.test_waiting import poll, stream, waiters
from tests.support.bus import eventually
from tests.support.counted import counted

FIRST = 2**20 + 1
QUEUE = 50
"""Requests of one session."""


@pytest.fixture
def polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait read again about once a second, as if the bus were away."""
    monkeypatch.setattr("services.gateway.waiting.POLL_SECONDS", 0.0)


class Statements:
    """Counts the statements of one database that read snapshots."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in ("fetch", "fetchrow"):
            monkeypatch.setattr(database, name, self._counting(getattr(database, name)))

    def _counting(self, method: Any) -> Any:
        async def counting(sql: str, *args: object) -> Any:
            self.count += "r.result, r.charge" in sql
            return await method(sql, *args)

        return counting


async def new_requests(gateway: Gateway, count: int) -> list[Any]:
    sessions = [await gateway.new_session() for _ in range(count // QUEUE)]
    return [await gateway.send(session_id) for session_id in sessions for _ in range(QUEUE)]


@contextlib.asynccontextmanager
async def waiting_for(gateway: Gateway, paths: list[str]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Polls of all these paths, none of which has an answer yet."""
    timeout, connector = aiohttp.ClientTimeout(total=CALL_SECONDS_MAX), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = replace(gateway, http=session)
        before = waiters(gateway)
        polls = [asyncio.create_task(client.call("GET", path, headers={"Prefer": "wait=60"})) for path in paths]

        async def all_wait() -> bool:
            return waiters(gateway) == before + len(polls)

        try:
            await eventually(all_wait)
            yield polls
        finally:
            for task in polls:
                task.cancel()
            await asyncio.gather(*polls, return_exceptions=True)


async def turns_of_loop(name: str, count: int) -> None:
    """Return once a periodic task has had so many more turns."""
    expected = counted("loop_turns", loop=name, outcome="done") + count

    async def are_had() -> bool:
        return counted("loop_turns", loop=name, outcome="done") >= expected

    await eventually(are_had)


@pytest.mark.usefixtures("polling")
async def test_the_statements_of_those_who_wait_do_not_grow_with_their_number(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(gateway.database, monkeypatch)
    turns = 4
    async with contextlib.AsyncExitStack() as stack:
        for more, count in ((50, 50), (250, 300)):
            requests = await new_requests(gateway, more)
            await stack.enter_async_context(
                waiting_for(gateway, [f"/v1/requests/{request['id']}" for request in requests])
            )
            assert waiters(gateway) == count
            await turns_of_loop("snapshots_poll", 1)
            keys, statements.count = counted("group_read_keys", group="requests"), 0
            await turns_of_loop("snapshots_poll", turns)
            assert counted("group_read_keys", group="requests") - keys >= (turns - 1) * count, "all read again"
            assert statements.count <= 2 * turns, f"{statements.count} statements for {count} waiters"


async def test_a_burst_of_polls_is_read_by_few_statements(
    gateway: Gateway, by_wake_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = await new_requests(gateway, 100)
    statements = Statements(gateway.database, monkeypatch)
    keys = counted("group_read_keys", group="requests")
    store = RequestStore(gateway.database)
    found = await asyncio.gather(
        *(store.select_request(request["id"], gateway.customer.account_id) for request in requests)
    )
    assert [request.id for request in found if request] == [request["id"] for request in requests]
    assert counted("group_read_keys", group="requests") - keys == 100
    assert statements.count == 1


async def test_a_burst_of_first_requests_counts_the_open_ones_of_each_account_once(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    for _ in range(3):
        await gateway.send(session_id)
    own, stranger = gateway.customer.account_id, (await gateway.new_customer()).account_id
    store, reads = RequestStore(gateway.database), counted("group_reads", group="open_requests")
    asked = [(own, 10), (own, 2), (stranger, 10)] * 50
    found = await asyncio.gather(*(store.select_open_request_count(*one) for one in asked))
    assert found == [3, 2, 0] * 50
    assert counted("group_reads", group="open_requests") - reads == 1


async def test_in_one_read_each_gets_only_what_is_their_accounts_own(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    stranger = await gateway.new_customer()
    foreign_session = (await gateway.call("POST", "/v1/sessions", {}, key=stranger.key)).body["id"]
    path = f"/v1/sessions/{foreign_session}/requests"
    theirs = (await gateway.call("POST", path, {"input": "hello"}, key=stranger.key)).body
    owners = {request["id"]: gateway.customer, theirs["id"]: stranger}
    store = RequestStore(gateway.database)
    asked = [(one, caller.account_id) for one in (*owners, new_id("req")) for caller in owners.values()]
    reads = counted("group_reads", group="requests")
    rows = await asyncio.gather(*(store.select_request(*one) for one in asked))
    exist = await asyncio.gather(*(store.select_request_exists(*one) for one in asked))
    assert counted("group_reads", group="requests") - reads == 1
    for (request_id, account_id), row, exists in zip(asked, rows, exist, strict=True):
        is_own = request_id in owners and owners[request_id].account_id == account_id
        assert (row is not None, exists) == (is_own, is_own)
        assert row is None or (row.id, row.account_id) == (request_id, account_id)
    for suffix in ("", "/events"):
        calls = [(one, caller) for one in owners for caller in owners.values()] * 5
        replies = await asyncio.gather(
            *(gateway.call("GET", f"/v1/requests/{one}{suffix}", key=caller.key) for one, caller in calls)
        )
        for (one, caller), reply in zip(calls, replies, strict=True):
            assert reply.status == (200 if owners[one] is caller else 404)


@pytest.mark.usefixtures("polling")
async def test_an_end_that_nobody_was_told_of_is_found(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Outbox, "tell_moved", lambda *_, **__: None)
    monkeypatch.setattr(Hub, "give", lambda *_: None)
    request = await gateway.send(await gateway.new_session())
    waiting = await poll(gateway, f"/v1/requests/{request['id']}", Prefer="wait=60")
    await gateway.end(request)
    assert (await waiting).body["status"] == "completed"


@pytest.mark.usefixtures("polling")
async def test_log_entries_that_nobody_was_told_of_are_found_by_one_question_for_all(
    gateway: Gateway, peers: Peers
) -> None:
    session_id = await gateway.new_session()
    moved, *others = [await gateway.send(session_id) for _ in range(20)]
    paths = [f"/v1/requests/{request['id']}/events?wait=60&after={FIRST}" for request in others]
    async with waiting_for(gateway, paths) as waiting, stream(gateway, moved["id"]) as events:
        await events.idle()
        asked_before = len(peers.asked)
        peers.add_event(FIRST, "output.delta", PAST, text="a")
        peers.moved = {moved["id"]: FIRST}
        assert (await events.frame())["id"] == str(FIRST)
        await turns_of_loop("logs_poll", 2)
        asked = [question for question in peers.looked_up if len(question) == 20]
        assert asked[-1] == {moved["id"]: FIRST} | {request["id"]: FIRST for request in others}
        read = {path for path, _ in peers.asked[asked_before:] if path.endswith("/events")}
        assert read == {f"/internal/requests/{moved['id']}/events"}
        assert not any(task.done() for task in waiting)


async def test_who_waits_for_the_end_does_not_look_before_it(
    gateway: Gateway, by_wake_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = 0
    select_request = RequestStore.select_request

    async def counting(store: RequestStore, request_id: str, account_id: str) -> Any:
        nonlocal reads
        reads += 1
        return await select_request(store, request_id, account_id)

    request = await gateway.send(await gateway.new_session())
    path, etag = f"/v1/requests/{request['id']}", (await gateway.get(request["id"])).headers["ETag"]
    monkeypatch.setattr(RequestStore, "select_request", counting)
    for_end = await poll(gateway, path, Prefer="wait=60")
    for_change = await poll(gateway, path, **{"Prefer": "wait=60", "If-None-Match": etag})
    await gateway.bus.send(update_of(request, gateway.customer.account_id))
    assert (await for_change).body["status"] == "in_progress"
    assert reads == 3, "one each before they waited, one of who was told"
    await gateway.bus.send(ending_of(request, gateway.customer.account_id))
    assert (await for_end).body["status"] == "completed"
    assert reads == 3, "it was given what the end had written"
    shown = await gateway.get(request["id"])
    assert reads == 4
    assert (await for_end).body == shown.body
    assert (await for_end).headers["ETag"] == shown.headers["ETag"]
