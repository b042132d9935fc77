"""Group read: what is asked for together is read by one statement, and at low load nothing waits."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Final, Generic, TypeVar

from shared.errors import Transient
from shared.metrics import counter

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_KEYS_MAX: Final = 500
_READS_IN_FLIGHT_MAX: Final = 2

_keys_read = counter("group_read_keys", "Different keys asked for.", ("group",))
_reads = counter("group_reads", "Reads made.", ("group",))


class GroupRead(Generic[Key, Value]):
    """Gathers keys while reads are under way and hands them to `read` together.

    `read` gets different keys, and returns the values of those that it finds. Whatever decides who may see a value is
    part of its key. Equal keys that wait together are read once; nobody gets what was read before they asked.
    """

    def __init__(self, name: str, read: Callable[[Sequence[Key]], Awaitable[Mapping[Key, Value]]]) -> None:
        self._read = read
        self._waiting: dict[Key, asyncio.Future[Value | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = False
        self._in_flight = 0
        self._keys_read = _keys_read.labels(name)
        self._reads = _reads.labels(name)

    async def get(self, key: Key) -> Value | None:
        """The value of `key`, None where there is none; raises what the read raised."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            self._start_read()
        return await asyncio.shield(answer)  # others may wait for the same

    def _start_read(self) -> None:
        if self._waiting and not self._starting and self._in_flight < _READS_IN_FLIGHT_MAX:
            self._starting = True
            self._in_flight += 1
            # In a context of its own: a read starts the next one, and none of them is about who asked first alone.
            task = asyncio.get_running_loop().create_task(self._run(), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        # The keys are taken here and not in `get`, so that all who ask in the same turn of the loop share the read.
        self._starting = False
        answers = {key: self._waiting.pop(key) for key in list(islice(self._waiting, _KEYS_MAX))}
        self._start_read()
        try:
            await self._answer(answers)
        finally:
            self._in_flight -= 1
            self._keys_read.inc(len(answers))
            self._reads.inc()
            self._start_read()

    async def _answer(self, answers: Mapping[Key, asyncio.Future[Value | None]]) -> None:
        try:
            found = await self._read(list(answers))
        except Exception as error:
            _fail(answers, error)
        except BaseException:
            _fail(answers, Transient("the process is stopping"))
            raise
        else:
            for key, answer in answers.items():
                answer.set_result(found.get(key))


def _fail(answers: Mapping[Key, asyncio.Future[Value | None]], error: Exception) -> None:
    for answer in answers.values():
        answer.set_exception(error)
        answer.exception()  # whoever asked may have left: nobody has to hear of it
