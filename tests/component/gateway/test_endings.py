"""Endings: the first word counts, repeats and strangers change nothing, and each passes the turn on."""

from __future__ import annotations

from typing import get_args

import pytest

from shared.contracts.content import Outcome
from shared.contracts.gateway import SessionRequested
from tests.component.gateway.driver import PAST, Gateway, ending_of, update_of
from tests.component.gateway.peers import Peers
from tests.support.bus import eventually


@pytest.mark.parametrize("status", get_args(Outcome))
async def test_a_redelivered_ending_changes_nothing(gateway: Gateway, status: Outcome) -> None:
    session_id = await gateway.new_session()
    ended, following = await gateway.send(session_id), await gateway.send(session_id)
    await gateway.end(ended, status)
    before = await gateway.dump()
    async with gateway.handling("gateway.results", 3):
        for _ in range(3):
            await gateway.bus.send(ending_of(ended, gateway.customer.account_id, status))
    assert await gateway.dump() == before
    assert (await gateway.get(following["id"])).body["queue"] is None


async def test_a_contradicting_ending_changes_nothing(gateway: Gateway) -> None:
    ended = await gateway.send(await gateway.new_session())
    await gateway.end(ended, "completed")
    before = await gateway.dump()
    contradictions: tuple[Outcome, ...] = ("failed", "cancelled", "incomplete", "refused")
    async with gateway.handling("gateway.results", 4), gateway.handling("gateway.updates", 1):
        for status in contradictions:
            await gateway.bus.send(ending_of(ended, gateway.customer.account_id, status))
        await gateway.bus.send(update_of(ended, gateway.customer.account_id))
    assert await gateway.dump() == before


async def test_a_contradicting_ending_changes_nothing_while_a_later_request_is_open(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    ended = await gateway.send(session_id)
    await gateway.end(ended, "completed")
    later = await gateway.send(session_id)
    async with gateway.handling("gateway.results", 1):
        await gateway.bus.send(ending_of(ended, gateway.customer.account_id, "failed"))
    assert (await gateway.get(ended["id"])).body["status"] == "completed"
    assert (await gateway.get(later["id"])).body["status"] == "queued"
    await gateway.end(later, "completed")
    assert (await gateway.get(later["id"])).body["status"] == "completed"


async def test_an_ending_of_an_unknown_request_is_dropped(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    before = await gateway.dump()
    account_id = gateway.customer.account_id
    async with gateway.handling("gateway.results", 3):
        await gateway.bus.send(ending_of({**request, "id": "req_" + "0" * 32}, account_id))
        await gateway.bus.send(ending_of(request, "acct_" + "0" * 32))
        await gateway.bus.send(ending_of({**request, "session_id": "ses_" + "0" * 32}, account_id))
    assert await gateway.dump() == before


async def test_the_turn_goes_to_the_next_in_line_one_at_a_time(gateway: Gateway) -> None:
    listener = await gateway.bus.listen("session.requested")
    session_id = await gateway.new_session()
    requests = [await gateway.send(session_id, f"turn {number}") for number in range(4)]
    for place, request in enumerate(requests):
        heard = await listener.wait_for(place + 1)
        assert len(heard) == place + 1
        command = SessionRequested.model_validate_json(heard[place].body)
        assert (command.request_id, command.seq) == (request["id"], place + 1)
        await gateway.end(request)
    session = (await gateway.call("GET", f"/v1/sessions/{session_id}")).body
    assert (session["status"], session["open_requests"]) == ("idle", 0)


async def test_progress_moves_a_request_to_in_progress_and_says_what_it_waits_for(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    account_id = gateway.customer.account_id
    await gateway.bus.send(update_of(request, account_id, attempt=0, waiting_on="eligibility"))
    await until(gateway, request["id"], status="queued", waiting_on="eligibility")
    await gateway.bus.send(update_of(request, account_id))
    await until(gateway, request["id"], status="in_progress", waiting_on=None)
    assert (await gateway.get(request["id"])).body["started_at"] is not None
    await gateway.bus.send(update_of(request, account_id, waiting_on="retry_backoff"))
    await until(gateway, request["id"], status="in_progress", waiting_on="retry_backoff")


async def test_progress_of_a_request_without_the_turn_is_not_believed(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    await gateway.send(session_id)
    waiting = await gateway.send(session_id)
    async with gateway.handling("gateway.updates", 1):
        await gateway.bus.send(update_of(waiting, gateway.customer.account_id))
    shown = (await gateway.get(waiting["id"])).body
    assert (shown["status"], shown["waiting_on"]) == ("queued", "session_turn")


async def test_the_charge_is_asked_for_until_it_is_known_and_then_kept(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.end(request)
    assert (await gateway.get(request["id"])).body["charge"] is None
    charge = {"request_id": request["id"], "state": "settled", "tokens": 7, "reason": "completed"}
    peers.charges[request["id"]] = {**charge, "at": PAST.isoformat()}

    async def is_known() -> bool:
        return (await gateway.get(request["id"])).body["charge"] is not None

    await eventually(is_known)  # billing is given a second to answer, then the snapshot goes without
    first = (await gateway.get(request["id"])).body["charge"]
    assert (first["state"], first["tokens"]) == ("settled", 7)
    peers.charges.clear()
    assert (await gateway.get(request["id"])).body["charge"] == first


async def until(gateway: Gateway, request_id: str, **shown: object) -> None:
    async def is_shown() -> bool:
        body = (await gateway.get(request_id)).body
        return all(body[name] == value for name, value in shown.items())

    await eventually(is_shown)
