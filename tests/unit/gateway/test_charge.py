"""A charge is asked of billing soon, then ever less often, and kept once it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest

from services.gateway.peers import Billing
from services.gateway.records import Request
from services.gateway.request_reader import RequestReader
from services.gateway.store import RequestStore
from services.gateway.waiting import Hub
from shared.contracts.billing import Charge
from shared.errors import Transient
from tests.support.clock import START, FakeClock
from tests.unit.gateway.rows import RUNNING

ENDED = replace(
    RUNNING, state="completed", started_at=START, ended_at=START - timedelta(seconds=30), end_heard_at=START
)
CHARGE = Charge(request_id=ENDED.id, state="settled", tokens=7, reason="completed", at=START)


class Peer:
    """Billing, and the row that keeps what it said."""

    def __init__(self) -> None:
        self.request = ENDED
        self.asked = 0
        self.says: Charge | None = None
        self.is_away = False

    async def charge(self, request_id: str, account_id: str) -> Charge | None:
        self.asked += 1
        if self.is_away:
            raise Transient("away")
        return self.says

    async def select_request(self, request_id: str, account_id: str) -> Request:
        return self.request

    async def update_charges_if_missing(self, charges: Sequence[Charge]) -> None:
        (charge,) = charges
        self.request = replace(self.request, charge=charge)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def reader(peer: Peer, clock: FakeClock) -> RequestReader:
    hub = Hub("test", waiters_max=1, bus_is_up=lambda: True, clock=clock)
    return RequestReader(cast(RequestStore, peer), cast(Billing, peer), hub, clock)


async def poll(reader: RequestReader) -> Charge | None:
    return (await reader.get(ENDED.id, ENDED.account_id)).charge


async def test_a_poll_right_after_the_end_was_heard_asks_nobody_however_long_ago_the_work_ended(
    reader: RequestReader, peer: Peer
) -> None:
    assert await poll(reader) is None
    assert peer.asked == 0


@pytest.mark.parametrize("is_away", [False, True])
async def test_who_polls_often_asks_ever_less_often(
    reader: RequestReader, peer: Peer, clock: FakeClock, is_away: bool
) -> None:
    peer.is_away = is_away
    for _ in range(600):
        await clock.advance(0.1)
        await poll(reader)
    assert peer.asked == 6, "after 1, 2, 4, 8, 16 and 32 seconds"


async def test_what_billing_said_is_kept(reader: RequestReader, peer: Peer, clock: FakeClock) -> None:
    await clock.advance(1)
    await poll(reader)
    peer.says = CHARGE
    assert await poll(reader) is None, "just asked"
    await clock.advance(1)
    assert await poll(reader) == CHARGE
    peer.says = None
    assert await poll(reader) == CHARGE
    assert peer.asked == 2
