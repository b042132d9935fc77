"""Group commit: batching, order, isolation of the bad item, retries."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.errors import Transient
from shared.group_commit import GroupCommit
from shared.postgres import DatabaseRefused, DatabaseUnavailable


class Recorder:
    """A flush that notes its batches and waits where told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[str]) -> Sequence[str]:
        self.batches.append(list(items))
        await self.gate.wait()
        return [item.upper() for item in items]


def group(flush: Recorder, **options: int) -> GroupCommit[str, str]:
    return GroupCommit("test", flush, key=lambda item: item.rstrip("0123456789"), **options)


async def test_a_lone_item_is_flushed_at_once_and_gets_its_own_result() -> None:
    flush = Recorder()
    assert await group(flush).submit("a") == "A"
    assert flush.batches == [["a"]]


async def test_what_arrives_during_a_flush_shares_the_next_one_sorted_by_key() -> None:
    flush = Recorder()
    flush.gate.clear()
    commits = group(flush, flushes_in_flight_max=1)
    first = commits.submit("m")
    while not flush.batches:
        await asyncio.sleep(0)
    later = [commits.submit(item) for item in "cab"]
    await asyncio.sleep(0)
    flush.gate.set()
    assert await asyncio.gather(first, *later) == ["M", "C", "A", "B"]
    assert flush.batches == [["m"], ["a", "b", "c"]]


async def test_items_of_one_key_never_share_a_flush_nor_overlap() -> None:
    running: set[str] = set()
    order: list[str] = []

    async def flush(items: Sequence[str]) -> Sequence[str]:
        keys = [item[0] for item in items]
        assert len(set(keys)) == len(keys)
        assert not running & set(keys)
        running.update(keys)
        await asyncio.sleep(0)
        order.extend(items)
        running.difference_update(keys)
        return items

    commits = GroupCommit("test", flush, key=lambda item: item[0], flushes_in_flight_max=3)
    items = [f"{key}{number}" for number in range(20) for key in "xyz"]
    await asyncio.gather(*(commits.submit(item) for item in items))
    assert [item for item in order if item[0] == "x"] == [f"x{number}" for number in range(20)]
    assert len(order) == 60


async def test_a_batch_is_bounded() -> None:
    flush = Recorder()
    commits = group(flush, items_max=10)
    await asyncio.gather(*(commits.submit(f"{chr(97 + number)}") for number in range(25)))
    assert max(len(batch) for batch in flush.batches) == 10


async def test_only_the_bad_item_of_a_refused_batch_fails() -> None:
    async def flush(items: Sequence[str]) -> Sequence[str]:
        if "bad" in items:
            raise DatabaseRefused("23514", "some_check")
        return items

    commits = GroupCommit("test", flush, key=str)
    outcomes = await asyncio.gather(*(commits.submit(item) for item in ("a", "bad", "c")), return_exceptions=True)
    assert outcomes[0] == "a"
    assert isinstance(outcomes[1], DatabaseRefused)
    assert outcomes[2] == "c"


async def test_deadlocks_and_serialization_failures_are_tried_again() -> None:
    tries: list[int] = []

    async def flush(items: Sequence[str]) -> Sequence[str]:
        tries.append(len(items))
        if len(tries) < 3:
            raise DatabaseUnavailable("40P01")
        return items

    assert await GroupCommit("test", flush, key=str).submit("a") == "a"
    assert tries == [1, 1, 1]


async def test_an_outage_reaches_every_submitter_and_the_next_flush_works() -> None:
    down = True

    async def flush(items: Sequence[str]) -> Sequence[str]:
        if down:
            raise DatabaseUnavailable
        return items

    commits = GroupCommit("test", flush, key=str)
    outcomes = await asyncio.gather(*(commits.submit(item) for item in "ab"), return_exceptions=True)
    assert all(isinstance(outcome, Transient) for outcome in outcomes)
    down = False
    assert await commits.submit("a") == "a"


async def test_a_cancelled_submitter_does_not_undo_its_item_nor_hurt_its_neighbours() -> None:
    flush = Recorder()
    flush.gate.clear()
    commits = group(flush)
    leaver = commits.submit("a")
    stayer = commits.submit("b")
    while not flush.batches:
        await asyncio.sleep(0)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    flush.gate.set()
    assert await stayer == "B"
    assert flush.batches == [["a", "b"]]
