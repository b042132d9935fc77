"""Cancel in every state: told to whoever has the request, decided by results, and only once."""

from __future__ import annotations

from typing import get_args

import pytest

from shared.contracts.content import Outcome
from shared.contracts.gateway import SessionAbandoned, SessionCancelRequested
from tests.component.gateway.driver import Gateway, Reply, update_of

PATHS = ("session.requested", "session.cancel_requested", "session.abandoned")


async def cancel(gateway: Gateway, request_id: str) -> Reply:
    reply = await gateway.call("POST", f"/v1/requests/{request_id}/cancel")
    assert reply.status == 200
    return reply


async def test_a_request_that_waits_for_its_turn_is_abandoned(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    first, second, third = [await gateway.send(session_id) for _ in range(3)]
    await gateway.dump()  # the first one's command is on its way: what is heard comes after it
    listener = await gateway.bus.listen(*PATHS)
    cancelled = (await cancel(gateway, second["id"])).body
    assert (cancelled["status"], cancelled["cancel_requested_at"] is not None) == ("queued", True)
    proposal = SessionAbandoned.model_validate_json((await listener.wait_for(1))[0].body)
    assert (proposal.request_id, proposal.status, proposal.error.code) == (second["id"], "cancelled", "cancelled")
    # The turn passes it by, whether its end has been stored yet or not.
    await gateway.end(first)
    assert [heard.routing_key for heard in await listener.wait_for(2)] == ["session.abandoned", "session.requested"]
    await gateway.end(second, "cancelled", ended_by="session.abandoned")
    assert (await gateway.get(third["id"])).body["queue"] is None
    assert len(listener.heard) == 2


@pytest.mark.parametrize("has_started", [False, True])
async def test_a_request_that_was_handed_over_is_cancelled_by_the_orchestrator(
    gateway: Gateway, has_started: bool
) -> None:
    request = await gateway.send(await gateway.new_session())
    if has_started:
        async with gateway.handling("gateway.updates", 1):
            await gateway.bus.send(update_of(request, gateway.customer.account_id))
    listener = await gateway.bus.listen(*PATHS[1:])
    await cancel(gateway, request["id"])
    heard = await listener.wait_for(1)
    command = SessionCancelRequested.model_validate_json(heard[0].body)
    assert (heard[0].routing_key, command.request_id) == ("session.cancel_requested", request["id"])
    await gateway.end(request, "cancelled")
    assert (await gateway.get(request["id"])).body["status"] == "cancelled"


async def test_a_second_cancel_changes_nothing_and_says_the_same(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    first = await cancel(gateway, request["id"])
    before = await gateway.dump()
    second = await cancel(gateway, request["id"])
    assert second.body == first.body
    assert await gateway.dump() == before


@pytest.mark.parametrize("status", get_args(Outcome))
async def test_a_cancel_after_the_end_changes_nothing(gateway: Gateway, status: Outcome) -> None:
    request = await gateway.send(await gateway.new_session())
    await gateway.end(request, status)
    before = await gateway.dump()
    assert (await cancel(gateway, request["id"])).body["status"] == status
    assert await gateway.dump() == before


async def test_a_cancel_that_comes_too_late_loses_to_the_answer(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    await cancel(gateway, request["id"])
    await gateway.end(request, "completed")
    shown = (await gateway.get(request["id"])).body
    assert (shown["status"], shown["output"]["text"]) == ("completed", "Hi.")
