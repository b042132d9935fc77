"""The tasks that this process runs: how many slots are free, and how a run is cut short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Literal, TypeVar

from services.orchestrator.progress import Progress
from services.orchestrator.prompt import Prompt
from services.orchestrator.records import AttemptEnd, AttemptStart
from services.orchestrator.task import Task
from shared.contracts.orchestrator import AttemptRecord, WaitRecord
from shared.ids import random_hex
from shared.metrics import gauge

T = TypeVar("T")

CutReason = Literal["cancelled", "deadline", "handed_back", "lost"]

_slots_used = gauge("slots_used", "Tasks that this process runs.")
_slots_total = gauge("slots_total", "Tasks that this process may run at once.")


class Cut(Exception):
    """The run is to stop here."""

    def __init__(self, reason: CutReason) -> None:
        super().__init__(reason)
        self.reason: CutReason = reason


class Run:
    """One claimed task on its way through this process."""

    def __init__(self, task: Task, *, prompt: Prompt | None = None, start: AttemptStart | None = None) -> None:
        self.task: Final = task
        self.request_id: Final = task.request_id
        self.epoch: Final = random_hex()
        self.prompt = prompt
        self.decision_id = task.decision_id
        self.attempts: list[AttemptRecord] = list(task.attempts)
        self.started = start
        """An attempt whose row is written and whose call is not over."""
        self.called = False
        """Whether that call was really made."""
        self.progress: Progress | None = None
        self.unwritten: AttemptEnd | None = None
        """The end of the last attempt, which the next write carries."""
        self.tried: set[str] = set()
        self.waits: list[WaitRecord] = []
        """The pauses of this claim, slept without giving up the slot."""
        self._reason: CutReason | None = None
        self._work: asyncio.Future[Any] | None = None

    @property
    def last_attempt(self) -> int:
        """The number of the last attempt that is over, 0 before the first."""
        return self.attempts[-1].attempt if self.attempts else 0

    @property
    def lost(self) -> bool:
        """The task is somebody else's now: nothing that this run still writes would count."""
        return self._reason == "lost"

    def cut(self, reason: CutReason) -> None:
        """Stop what the run waits for. A lost run stays lost; else the first reason counts."""
        if self._reason is None or reason == "lost":
            self._reason = reason
        if self._work is not None:
            self._work.cancel()

    async def interruptible(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or Cut. What was there before the cut is not thrown away."""
        if self._reason is not None:
            work.close()
            raise Cut(self._reason)
        self._work = asyncio.ensure_future(work)
        try:
            result: T = await self._work
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self._reason is None or (current is not None and current.cancelling()):
                raise
            raise Cut(self._reason) from None
        finally:
            self._work = None
        return result

    async def sleep(self, seconds: float) -> None:
        await self.interruptible(asyncio.sleep(seconds))


class Runs:
    """The slots of this process."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._reserved = 0
        self._running: dict[str, Run] = {}
        self._tasks: dict[Run, asyncio.Task[None]] = {}
        self._suspects: list[Run] = []
        self._changed = asyncio.Event()
        self.on_free: Callable[[], None] = lambda: None
        _slots_total.set(slots)

    @property
    def slots(self) -> int:
        return self._slots

    @property
    def free(self) -> int:
        return 0 if self._suspects else max(0, self._slots - len(self._running) - self._reserved)

    @property
    def running(self) -> Mapping[str, Run]:
        return self._running

    @contextmanager
    def reserving(self, wanted: int) -> Iterator[int]:
        """Keep up to `wanted` free slots until the runs they are for have been started."""
        granted = min(wanted, self.free)
        self._reserved += granted
        try:
            yield granted
        finally:
            self._reserved -= granted

    def start(self, run: Run, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` to its end; an older run of the same task is lost."""
        older = self._running.get(run.request_id)
        if older is not None:
            older.cut("lost")
        self._running[run.request_id] = run
        task = asyncio.create_task(work, name=f"run {run.request_id}")
        self._tasks[run] = task
        task.add_done_callback(lambda _: self._ended(run))
        _slots_used.set(len(self._running))

    def cut(self, request_id: str, reason: CutReason) -> None:
        run = self._running.get(request_id)
        if run is not None:
            run.cut(reason)

    def cut_all(self, reason: CutReason) -> None:
        for run in list(self._running.values()):
            run.cut(reason)

    async def until_idle(self) -> None:
        """Return when nothing runs."""
        await self._until(lambda: not self._tasks)

    async def until_changed(self) -> None:
        """Return when the next run has ended."""
        self._changed.clear()
        await self._changed.wait()

    @asynccontextmanager
    async def alone(self, run: Run) -> AsyncIterator[None]:
        """Take on nothing new and wait until nobody else works. Several that want this go one after the other: were
        each of them to wait for the others' ends, none would ever begin."""
        self._suspects.append(run)
        try:
            await run.interruptible(
                self._until(lambda: self._suspects[0] is run and len(self._tasks) <= len(self._suspects))
            )
            yield
        finally:
            self._suspects.remove(run)
            self._changed.set()
            self.on_free()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self.until_changed()

    def _ended(self, run: Run) -> None:
        del self._tasks[run]
        if self._running.get(run.request_id) is run:
            del self._running[run.request_id]
        _slots_used.set(len(self._running))
        self._changed.set()
        self.on_free()
