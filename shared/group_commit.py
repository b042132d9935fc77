"""Group commit: what arrives together is written by one statement, and at low load nothing waits."""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from shared import failpoints
from shared.errors import Transient
from shared.metrics import counter, histogram
from shared.postgres import DatabaseRefused, DatabaseUnavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRIED_STATES: Final = frozenset({"40001", "40P01"})
_TRIES_MAX: Final = 5

_flush_seconds = histogram("group_commit_flush_seconds", "Time of one flush.", ("group",))
_items_flushed = counter("group_commit_items", "Items written.", ("group",))
_flushes = counter("group_commit_flushes", "Flushes made.", ("group",))


@dataclass(eq=False, slots=True)
class _Waiting(Generic[Item, Result]):
    key: str
    item: Item
    done: asyncio.Future[Result]


class GroupCommit(Generic[Item, Result]):
    """Gathers items while a flush is under way and hands them to `flush` together, sorted by key.

    `flush` gets the items and returns a result for each, in their order. Items of equal key never share a flush
    and never run at the same time. A submitter that is cancelled does not undo its item.
    """

    def __init__(
        self,
        name: str,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        key: Callable[[Item], str],
        items_max: int = 200,
        flushes_in_flight_max: int = 2,
    ) -> None:
        self._name = name
        self._flush = flush
        self._key = key
        self._items_max = items_max
        self._flushes_in_flight_max = flushes_in_flight_max
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._keys_in_flight: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = False
        self._in_flight = 0
        self._seconds = _flush_seconds.labels(name)
        self._items = _items_flushed.labels(name)
        self._flushes = _flushes.labels(name)

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """The result of `item` once the flush that held it has returned; raises what the flush raised for it."""
        entry: _Waiting[Item, Result] = _Waiting(self._key(item), item, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._start_flush()
        return entry.done

    def _start_flush(self) -> None:
        if self._waiting and not self._starting and self._in_flight < self._flushes_in_flight_max:
            self._starting = True
            self._in_flight += 1
            # In a context of its own: a flush starts the next one, and none of them is about the first submitter alone.
            task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take_batch(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        left: deque[_Waiting[Item, Result]] = deque()
        while self._waiting and len(batch) < self._items_max:
            entry = self._waiting.popleft()
            if entry.key in self._keys_in_flight:
                left.append(entry)
            else:
                self._keys_in_flight.add(entry.key)
                batch.append(entry)
        self._waiting.extendleft(reversed(left))
        return sorted(batch, key=lambda entry: entry.key)

    async def _run(self) -> None:
        # The batch is taken here and not in `submit`, so that all who submit in the same turn of the loop share it.
        self._starting = False
        batch = self._take_batch()
        if not batch:  # every waiting key is in flight; that flush starts the next one when it ends
            self._in_flight -= 1
            return
        self._start_flush()
        try:
            failpoints.reach(f"commit.{self._name}.before")
            with self._seconds.time():
                await self._settle(batch)
        finally:
            self._in_flight -= 1
            self._keys_in_flight.difference_update(entry.key for entry in batch)
            self._items.inc(len(batch))
            self._flushes.inc()
            self._start_flush()

    async def _settle(self, batch: list[_Waiting[Item, Result]]) -> None:
        """One flush for all; where the database refuses the batch, one for each, so that only the bad item fails."""
        try:
            results = await self._flush_with_retries([entry.item for entry in batch])
        except DatabaseRefused as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            for entry in batch:
                await self._settle([entry])
        except Exception as error:
            _fail(batch, error)
        except BaseException:
            _fail(batch, Transient("the process is stopping"))
            raise
        else:
            failpoints.reach(f"commit.{self._name}.after")
            for entry, result in zip(batch, results, strict=True):
                if not entry.done.done():
                    entry.done.set_result(result)

    async def _flush_with_retries(self, items: list[Item]) -> Sequence[Result]:
        for _ in range(_TRIES_MAX - 1):
            try:
                return await self._flush(items)
            except DatabaseUnavailable as error:
                if error.sqlstate not in _RETRIED_STATES:
                    raise
        return await self._flush(items)


def _fail(batch: list[_Waiting[Item, Result]], error: Exception) -> None:
    for entry in batch:
        if not entry.done.done():
            entry.done.set_exception(error)
