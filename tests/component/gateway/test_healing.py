"""Whatever is lost on the way, an accepted request ends: what the sweeps do about rows that were made old."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from services.gateway.app import build_stores
from shared.contracts.gateway import SessionAbandoned
from tests.component.gateway.driver import Gateway, ending_of
from tests.component.gateway.peers import Peers
from tests.support.bus import eventually

DEADLINE_SECONDS = 600
GRACE_SECONDS = 30
SILENCE_SECONDS = 40
COMMANDS = ("session.requested", "session.cancel_requested", "session.abandoned")


def stored_by_results(gateway: Gateway, request: dict[str, Any]) -> dict[str, Any]:
    """The answer of the lookup for a request whose ending the bus has lost."""
    ending = ending_of(request, gateway.customer.account_id)
    return {"type": ending.type, **ending.model_dump(mode="json")}


async def test_a_lost_ending_is_read_from_results(gateway: Gateway, peers: Peers) -> None:
    session_id = await gateway.new_session()
    request, following = await gateway.send(session_id), await gateway.send(session_id)
    peers.results.append(stored_by_results(gateway, request))
    await gateway.age(request["id"], SILENCE_SECONDS)
    await gateway.until_status(request["id"], "completed")
    assert (await gateway.get(following["id"])).body["queue"] is None


@pytest.mark.parametrize("results_are_down", [False, True])
async def test_a_silent_request_is_commanded_again_and_then_less_often(
    gateway: Gateway, peers: Peers, results_are_down: bool
) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.dump()
    peers.results_are_down = results_are_down
    listener = await gateway.bus.listen(*COMMANDS)
    for number, gap_seconds in enumerate((30, 60, 120, 240, 300)):
        await gateway.database.execute("UPDATE requests SET deadline_at = now() + '1 hour'")
        before = await gateway.database.now()
        await gateway.age(request["id"], 301)
        heard = await listener.wait_for(number + 1)
        assert heard[number].routing_key == "session.requested"
        next_check_at = await gateway.database.fetchval("SELECT next_check_at FROM requests")
        assert before <= next_check_at - timedelta(seconds=gap_seconds) <= await gateway.database.now()
    assert len({incoming.headers["ce-id"] for incoming in listener.heard}) == 1


async def test_a_repeat_repeats_the_wish_to_cancel(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.call("POST", f"/v1/requests/{request['id']}/cancel")
    await gateway.dump()
    listener = await gateway.bus.listen(*COMMANDS)
    await gateway.age(request["id"], SILENCE_SECONDS)
    heard = await listener.wait_for(2)
    assert {incoming.routing_key for incoming in heard} == {"session.requested", "session.cancel_requested"}


async def test_a_request_whose_deadline_passes_in_the_queue_is_abandoned(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    running, expired, following = [await gateway.send(session_id) for _ in range(3)]
    await gateway.dump()  # the running one's command is on its way: what is heard comes after it
    listener = await gateway.bus.listen(*COMMANDS)
    await gateway.age(expired["id"], DEADLINE_SECONDS + 1)
    proposal = SessionAbandoned.model_validate_json((await listener.wait_for(1))[0].body)
    assert (proposal.request_id, proposal.status, proposal.error.code) == (expired["id"], "failed", "deadline_exceeded")
    await gateway.end(running)
    await gateway.end(expired, "failed", ended_by="session.abandoned")
    assert (await gateway.get(following["id"])).body["queue"] is None


async def test_a_request_that_was_handed_over_is_abandoned_only_after_the_grace(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.dump()
    listener = await gateway.bus.listen(*COMMANDS)
    await gateway.age(request["id"], DEADLINE_SECONDS + 5)
    assert (await listener.wait_for(1))[0].routing_key == "session.requested"
    await gateway.age(request["id"], GRACE_SECONDS + 30)
    heard = await listener.wait_for(2)
    proposal = SessionAbandoned.model_validate_json(heard[1].body)
    assert (proposal.status, proposal.error.code) == ("failed", "deadline_exceeded")
    # Its end is results' to say; until it does the proposal is repeated, not made anew.
    await gateway.age(request["id"], 301)
    assert SessionAbandoned.model_validate_json((await listener.wait_for(3))[2].body).request_id == request["id"]


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_publish_that_was_never_marked_is_swept_up(gateway: Gateway, command: str) -> None:
    session_id = await gateway.new_session()
    request, waiting = await gateway.send(session_id), await gateway.send(session_id)
    for each in (request, waiting):
        await gateway.call("POST", f"/v1/requests/{each['id']}/cancel")
    await gateway.dump()
    column = {"session.requested": "requested", "session.cancel_requested": "cancel", "session.abandoned": "abandon"}
    target = waiting if command == "session.abandoned" else request
    listener = await gateway.bus.listen(command)
    await gateway.database.execute(
        f"UPDATE requests SET {column[command]}_owed_at = now() - '1 minute'::interval WHERE id = $1", target["id"]
    )
    await gateway.owed(command).sweep()  # or the gateway's own, which runs every few seconds, was quicker
    assert (await listener.wait_for(1))[0].headers["ce-subject"] == target["id"]
    await gateway.dump()
    assert await gateway.owed(command).sweep() == 0


async def test_no_look_is_put_off_beyond_the_end_of_the_grace(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.dump()
    listener = await gateway.bus.listen(*COMMANDS)
    for number in range(6):
        await gateway.age(request["id"], (DEADLINE_SECONDS - 30) / 6)
        await gateway.database.execute("UPDATE requests SET next_check_at = now()")
        gateway.sweep("healing")
        assert (await listener.wait_for(number + 1))[number].routing_key == "session.requested"
    assert await gateway.database.fetchval("SELECT checks >= 5 FROM requests")
    late = await gateway.database.fetchval("SELECT next_check_at - deadline_at <= '30 seconds'::interval FROM requests")
    assert late, "the next look comes after the request is overdue"


async def test_a_publish_that_is_being_paid_is_left_alone(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.dump()
    await gateway.database.execute("UPDATE requests SET requested_owed_at = now() WHERE id = $1", request["id"])
    assert await gateway.owed("session.requested").sweep() == 0


async def test_a_turn_that_points_to_an_ended_request_is_passed_on(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    request, waiting = await gateway.send(session_id), await gateway.send(session_id)
    await gateway.end(request)
    await gateway.dump()
    listener = await gateway.bus.listen("session.requested")
    await gateway.database.execute("UPDATE sessions SET running = $1", request["id"])
    await gateway.database.execute("UPDATE requests SET dispatched_at = NULL WHERE id = $1", waiting["id"])
    gateway.sweep("turn_repair")
    assert (await listener.wait_for(1))[0].headers["ce-subject"] == waiting["id"]
    assert await gateway.database.fetchval("SELECT running FROM sessions") == waiting["id"]


async def test_an_overdue_request_is_counted(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.age(request["id"], DEADLINE_SECONDS + GRACE_SECONDS + 1)

    async def shows(count: int) -> bool:
        gateway.sweep("overdue")
        return f"parley_requests_overdue {count}.0" in gateway.metrics()

    await eventually(lambda: shows(1))
    await gateway.end(request, "failed")
    await eventually(lambda: shows(0))


async def test_two_replicas_that_sweep_at_once_propose_one_end(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    await gateway.send(session_id)
    expired = await gateway.send(session_id)
    await gateway.database.execute(
        "UPDATE requests SET deadline_at = now() - '1 second'::interval WHERE id = $1", expired["id"]
    )
    sweeps = build_stores(gateway.database, gateway.settings).sweeps
    proposed = await asyncio.gather(*(sweeps.update_requests_abandoned_if_expired([expired["id"]]) for _ in range(3)))
    assert sum(len(batch) for batch in proposed) == 1
