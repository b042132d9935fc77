"""Progress: the first hint at once, those that follow closely together, and none for what has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import pytest

from services.gateway.progress import ProgressWriter
from services.gateway.records import Progress
from services.gateway.store import TurnStore
from shared.contracts.content import WaitingOn
from shared.contracts.results import ResultUpdated
from tests.support.clock import START, FakeClock


class Store:
    """Keeps what was written, one list for each statement."""

    def __init__(self) -> None:
        self.writes: list[list[str]] = []
        self.hints: list[Progress] = []

    async def update_requests_progressed_if_open(self, hints: Sequence[Progress]) -> set[str]:
        self.writes.append([hint.request_id for hint in hints])
        self.hints += hints
        return {hint.request_id for hint in hints}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def writer(store: Store, clock: FakeClock) -> ProgressWriter:
    return ProgressWriter(cast(TurnStore, store), clock)


def update(request_id: str, *, attempt: int = 1, waiting_on: WaitingOn | None = None, second: int = 0) -> ResultUpdated:
    return ResultUpdated(
        request_id=request_id,
        account_id="acct",
        session_id="ses",
        seq=1,
        attempt=attempt,
        waiting_on=waiting_on,
        cursor=1,
        at=START + timedelta(seconds=second),
    )


async def test_the_first_hint_is_written_at_once_and_those_that_follow_closely_share_a_write(
    writer: ProgressWriter, store: Store, clock: FakeClock
) -> None:
    assert await writer.write([update("a")]) == {"a"}
    leading = asyncio.create_task(writer.write([update("c")]))
    await clock.someone_sleeps()
    assert await writer.write([update("b"), update("d")]) == set()
    assert store.writes == [["a"]]
    await clock.advance(1)
    assert await leading == {"b", "c", "d"}
    assert store.writes == [["a"], ["b", "c", "d"]]


async def test_of_the_hints_of_a_request_only_the_newest_is_written(
    writer: ProgressWriter, store: Store, clock: FakeClock
) -> None:
    await writer.write([update("x")])
    leading = asyncio.create_task(writer.write([update("a", waiting_on="retry_backoff", second=2)]))
    await clock.someone_sleeps()
    await writer.write([update("a", attempt=2, second=3), update("a", second=1)])
    await clock.advance(1)
    assert await leading == {"a"}
    assert [(hint.request_id, hint.attempt, hint.waiting_on) for hint in store.hints[1:]] == [("a", 2, None)]


async def test_what_has_ended_meanwhile_is_not_written(writer: ProgressWriter, store: Store, clock: FakeClock) -> None:
    await writer.write([update("x")])
    leading = asyncio.create_task(writer.write([update("a"), update("b")]))
    await clock.someone_sleeps()
    writer.drop(["a", "c"])
    await clock.advance(1)
    assert await leading == {"b"}
    await clock.advance(1)
    assert await writer.write([update("a", second=5), update("c", attempt=2)]) == set()
    assert store.writes == [["x"], ["b"]]


async def test_what_is_said_already_is_written_only_as_a_sign_of_life(
    writer: ProgressWriter, store: Store, clock: FakeClock
) -> None:
    await writer.write([update("a")])
    await clock.advance(9)
    assert await writer.write([update("a", second=9)]) == set()
    assert store.writes == [["a"]]
    await clock.advance(1)
    assert await writer.write([update("a", second=10)]) == set(), "nothing new to its owner"
    assert store.writes == [["a"], ["a"]]
