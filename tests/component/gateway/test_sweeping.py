"""Each sweep of the gateway at its time, not before, and counted; all clocks, the database's too, move by the test."""

from __future__ import annotations

import pytest

from services.gateway.app import CHECK_AFTER, HEALING_SECONDS, OVERDUE_SECONDS, REPAIR_SECONDS
from services.gateway.config import Settings
from tests.component.gateway.driver import Gateway, ending_of
from tests.component.gateway.peers import Peers
from tests.support.bus import eventually
from tests.support.clock import DatabaseTime, FakeDatabaseClock
from tests.support.counted import counted

DEADLINE_SECONDS = 20
OWED_SECONDS = 5


@pytest.fixture
async def clock(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> FakeDatabaseClock:
    """Everything in the gateway that waits or asks for the time does so on this clock."""
    database_time = DatabaseTime(settings.database_url.get_secret_value())
    await database_time.become_movable()
    clock = FakeDatabaseClock(database_time)
    monkeypatch.setattr("services.gateway.app.DatabaseClock", lambda _: clock)
    return clock


@pytest.fixture
async def swept(clock: FakeDatabaseClock, gateway: Gateway) -> Gateway:
    """A gateway that was started on the clock of the test."""
    return gateway


async def moved(name: str, before: float, **labels: str) -> None:
    async def has_moved() -> bool:
        return counted(name, **labels) == before + 1

    await eventually(has_moved)


async def test_a_silent_request_is_commanded_again_after_its_time(swept: Gateway, clock: FakeDatabaseClock) -> None:
    request = await swept.send(await swept.new_session())
    await swept.dump()
    listener = await swept.bus.listen("session.requested")
    before = counted("requests_healed", action="repeated")
    await clock.advance(CHECK_AFTER.total_seconds() - 5)
    await clock.advance(2 * HEALING_SECONDS)
    assert counted("requests_healed", action="repeated") == before
    await clock.advance(5)
    await moved("requests_healed", before, action="repeated")
    assert (await listener.wait_for(1))[0].headers["ce-subject"] == request["id"]


async def test_an_ending_that_was_lost_is_fetched_after_its_time(
    swept: Gateway, clock: FakeDatabaseClock, peers: Peers
) -> None:
    request = await swept.send(await swept.new_session())
    await swept.dump()
    ending = ending_of(request, swept.customer.account_id)
    peers.results.append({"type": ending.type, **ending.model_dump(mode="json")})
    before = counted("requests_healed", action="ended")
    await clock.advance(CHECK_AFTER.total_seconds() + 2 * HEALING_SECONDS)
    await moved("requests_healed", before, action="ended")
    await swept.until_status(request["id"], "completed")


async def test_a_request_past_its_deadline_and_the_grace_is_given_up(swept: Gateway, clock: FakeDatabaseClock) -> None:
    request = await swept.send(await swept.new_session(), deadline_seconds=DEADLINE_SECONDS)
    await swept.dump()
    listener = await swept.bus.listen("session.abandoned")
    before = counted("requests_healed", action="abandoned")
    grace_seconds = swept.settings.grace_seconds
    await clock.advance(DEADLINE_SECONDS + grace_seconds - 5)
    await clock.advance(2 * HEALING_SECONDS)
    assert counted("requests_healed", action="abandoned") == before
    await clock.advance(5)
    await moved("requests_healed", before, action="abandoned")
    assert (await listener.wait_for(1))[0].headers["ce-subject"] == request["id"]


async def test_a_turn_that_nobody_has_is_passed_on(swept: Gateway, clock: FakeDatabaseClock) -> None:
    session_id = await swept.new_session()
    request, waiting = await swept.send(session_id), await swept.send(session_id)
    await swept.end(request)
    await swept.dump()
    await swept.database.execute("UPDATE sessions SET running = $1", request["id"])
    await swept.database.execute("UPDATE requests SET dispatched_at = NULL WHERE id = $1", waiting["id"])
    before = counted("requests_healed", action="turn_repaired")
    await clock.advance(REPAIR_SECONDS * 1.1)
    await moved("requests_healed", before, action="turn_repaired")
    assert await swept.database.fetchval("SELECT running FROM sessions") == waiting["id"]


async def test_an_overdue_request_shows(swept: Gateway, clock: FakeDatabaseClock) -> None:
    await swept.send(await swept.new_session(), deadline_seconds=DEADLINE_SECONDS)

    async def shows(count: int) -> bool:
        return f"parley_requests_overdue {count}.0" in swept.metrics()

    await clock.advance(OVERDUE_SECONDS * 1.1)
    await eventually(lambda: shows(0))
    await clock.advance(DEADLINE_SECONDS + swept.settings.grace_seconds)
    await clock.advance(OVERDUE_SECONDS * 1.1)
    await eventually(lambda: shows(1))


@pytest.mark.parametrize("command", ["session.requested", "session.cancel_requested", "session.abandoned"])
async def test_an_owed_publish_is_paid_once_it_is_old(swept: Gateway, clock: FakeDatabaseClock, command: str) -> None:
    session_id = await swept.new_session()
    request, waiting = await swept.send(session_id), await swept.send(session_id)
    for each in (request, waiting):
        await swept.call("POST", f"/v1/requests/{each['id']}/cancel")
    await swept.dump()
    column = {"session.requested": "requested", "session.cancel_requested": "cancel", "session.abandoned": "abandon"}
    target = waiting if command == "session.abandoned" else request
    # As it is between the commit and the publish.
    await swept.database.execute(f"UPDATE requests SET {column[command]}_owed_at = now() WHERE id = $1", target["id"])
    before = counted("owed_publishes_paid", owed=command, payer="sweep")
    listener = await swept.bus.listen(command)
    await clock.advance(OWED_SECONDS + 1)
    await moved("owed_publishes_paid", before, owed=command, payer="sweep")
    assert (await listener.wait_for(1))[0].headers["ce-subject"] == target["id"]
