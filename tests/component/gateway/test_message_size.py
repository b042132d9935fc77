"""A request that is larger than the broker's max_message_size ends, and lets the next one run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.contracts.gateway import SessionAbandoned, SessionRequested
from tests.component.gateway.driver import Gateway, ending_of
from tests.support.servers import Vhosts


@pytest.fixture
async def amqp_url(narrow_vhosts: Vhosts) -> AsyncIterator[str]:
    async with narrow_vhosts.with_queues() as url:
        yield url


async def test_a_command_that_no_message_can_carry_is_abandoned(gateway: Gateway) -> None:
    commands, abandons = await gateway.bus.listen("session.requested"), await gateway.bus.listen("session.abandoned")
    session_id = await gateway.new_session()
    large = await gateway.send(session_id, "x" * 100_000)
    waiting = await gateway.send(session_id, "next")
    abandoned = SessionAbandoned.model_validate_json((await abandons.wait_for(1))[0].body)
    assert (abandoned.request_id, abandoned.status) == (large["id"], "failed")
    assert abandoned.error.code == "input_too_large"
    row = await gateway.database.fetchrow("SELECT * FROM requests WHERE id = $1", large["id"])
    assert row is not None
    assert (row["abandon_code"], row["requested_owed_at"]) == ("input_too_large", None)
    # What results makes of it passes the turn on.
    await gateway.bus.send(ending_of(large, gateway.customer.account_id, "failed"))
    following = SessionRequested.model_validate_json((await commands.wait_for(1))[0].body)
    assert following.request_id == waiting["id"]
