"""Group read: together, at once where nobody else reads, and never older than the question."""

import asyncio
from collections.abc import Sequence

import pytest

from shared import group_read
from shared.errors import Transient
from shared.group_read import GroupRead


class Table:
    """Reads that note their keys and wait where told to."""

    def __init__(self) -> None:
        self.reads: list[list[str]] = []
        self.rows = {"a": 1, "b": 2, "c": 3}
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None

    async def __call__(self, keys: Sequence[str]) -> dict[str, int]:
        self.reads.append(list(keys))
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return found

    async def reached(self, count: int) -> None:
        while len(self.reads) < count:
            await asyncio.sleep(0)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    monkeypatch.setattr(group_read, "_READS_IN_FLIGHT_MAX", 1)
    return Table()


async def test_a_lone_key_is_read_at_once_and_a_missing_one_is_none(table: Table) -> None:
    group = GroupRead("test", table)
    assert await group.get("a") == 1
    assert await group.get("z") is None
    assert table.reads == [["a"], ["z"]]


async def test_what_is_asked_during_a_read_shares_the_next_one_and_equal_keys_are_read_once(table: Table) -> None:
    group = GroupRead("test", table)
    table.gate.clear()
    first = asyncio.create_task(group.get("a"))
    await table.reached(1)
    later = [asyncio.create_task(group.get(key)) for key in "bczb"]
    await asyncio.sleep(0)
    table.gate.set()
    assert await asyncio.gather(first, *later) == [1, 2, 3, None, 2]
    assert table.reads == [["a"], ["b", "c", "z"]]


async def test_nobody_gets_what_was_read_before_they_asked(table: Table) -> None:
    group = GroupRead("test", table)
    table.gate.clear()
    early = asyncio.create_task(group.get("a"))
    await table.reached(1)
    table.rows["a"] = 10
    late = asyncio.create_task(group.get("a"))
    await asyncio.sleep(0)
    table.gate.set()
    assert (await early, await late) == (1, 10)


async def test_a_read_is_bounded(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_read, "_KEYS_MAX", 10)
    group = GroupRead("test", table)
    await asyncio.gather(*(group.get(str(number)) for number in range(25)))
    assert [len(keys) for keys in table.reads] == [10, 10, 5]


async def test_a_failed_read_fails_those_who_asked_and_nobody_else(table: Table) -> None:
    group = GroupRead("test", table)
    table.error = Transient("away")
    outcomes = await asyncio.gather(group.get("a"), group.get("b"), return_exceptions=True)
    assert list(outcomes) == [table.error, table.error]
    table.error = None
    assert await group.get("a") == 1


async def test_who_leaves_takes_the_answer_from_nobody(table: Table) -> None:
    group = GroupRead("test", table)
    table.gate.clear()
    leaving, staying = asyncio.create_task(group.get("a")), asyncio.create_task(group.get("a"))
    await table.reached(1)
    leaving.cancel()
    await asyncio.wait({leaving})
    table.gate.set()
    assert await staying == 1
    assert leaving.cancelled()
