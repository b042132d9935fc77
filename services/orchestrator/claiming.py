"""Fills the free slots with due tasks and those of lost workers, at the instant they are due."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Final

from services.orchestrator.leases import Leases
from services.orchestrator.runs import Runs
from services.orchestrator.store import TaskStore
from services.orchestrator.task import WORKERS_LOST_BEFORE_ALONE, WORKERS_LOST_MAX, Task
from shared.clock import Clock
from shared.errors import ParleyError, Transient
from shared.logs import get_logger
from shared.metrics import counter
from shared.resource import Resource

log = get_logger(__name__)

CLAIM_MAX: Final = 100
CLAIM_INTERVAL_SECONDS: Final = 1.0
"""What other replicas put aside is found by looking; what this one put aside is known to the moment."""
WAKE_SECONDS_MIN: Final = 0.01
LAST_CLAIM_SECONDS: Final = 3.0

_LOST_WORKER: Final = "lost_worker"
_claims = counter("tasks_claimed", "Tasks claimed, by what they had waited for.", ("source",), from_zero=[_LOST_WORKER])


class Schedule:
    """When to look for due tasks next."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: datetime | None = None
        self._wake = asyncio.Event()
        self.slot_wanted = False
        """Tasks wait for a slot: the next one that is freed is a reason to look."""

    def expect(self, due: datetime) -> None:
        """A task was put aside until this instant."""
        if self._due is None or due < self._due:
            self._due = due
            self._wake.set()

    def found(self, due: datetime | None) -> None:
        """What the look itself saw; not a reason to look again before."""
        self._due = min(filter(None, (due, self._due)), default=None)

    def wake(self) -> None:
        self._wake.set()

    def slot_freed(self) -> None:
        if self.slot_wanted:
            self._wake.set()

    def begin_look(self) -> None:
        """From here on a wake means another look."""
        self._wake.clear()
        self._due = None

    async def until_due(self, *, slot_free: bool) -> None:
        left_seconds = CLAIM_INTERVAL_SECONDS
        # Without a slot a due task is nothing to wake for: a freed slot is.
        if self._due is not None and slot_free:
            due_seconds = (self._due - self._clock.now()).total_seconds()
            left_seconds = min(left_seconds, max(WAKE_SECONDS_MIN, due_seconds))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_seconds):
                await self._wake.wait()


class Claiming(Resource):
    """The loop that claims, and the gate that keeps the broker's backlog in the broker."""

    def __init__(
        self,
        tasks: TaskStore,
        leases: Leases,
        runs: Runs,
        schedule: Schedule,
        start_run: Callable[[Task], None],
        clock: Clock,
    ) -> None:
        self._tasks = tasks
        self._leases = leases
        self._runs = runs
        self._schedule = schedule
        self._start_run = start_run
        self._clock = clock
        self._draining = False
        self._loop: asyncio.Task[None] | None = None
        runs.on_free = schedule.slot_freed
        leases.on_registered = schedule.wake

    async def start(self) -> None:
        self._loop = asyncio.create_task(self._claim_forever())

    def drain(self) -> None:
        self._draining = True
        self._schedule.wake()

    async def stop(self) -> None:
        """A claim under way is let through if that is quick: what it takes is handed back with the rest, by its run or,
        where the answer does not reach us, by its row."""
        self.drain()
        if self._loop is not None:
            await asyncio.wait({self._loop}, timeout=LAST_CLAIM_SECONDS)
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    async def gate(self) -> None:
        """Return when one more batch may be taken from the broker: not while as many tasks wait as there are slots."""
        while not await self._room():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLAIM_INTERVAL_SECONDS):
                    await self._runs.until_changed()

    async def _room(self) -> bool:
        if self._draining or not self._leases.held:
            return False
        if self._runs.free > 0:
            return True
        try:
            return await self._tasks.select_count_waiting(self._runs.slots) < self._runs.slots
        except ParleyError as error:
            # Whatever is wrong there, the loop that waits at this gate must not end.
            log.warning("gate.unknown", error=str(error))
            return False

    async def _claim_forever(self) -> None:
        while not self._draining:
            self._schedule.begin_look()
            try:
                if await self._claim():
                    continue
                due = await self._tasks.select_next_due()
            except Transient as error:
                log.warning("claim.postponed", error=str(error))
            except Exception as error:
                # Whatever it is: a replica whose claims had ended would look ready and take up nothing for ever.
                log.error("claim.failed", exc_info=error)
            else:
                self._schedule.found(due)
            await self._schedule.until_due(slot_free=self._runs.free > 0)

    async def _claim(self) -> bool:
        """Fill the free slots; whether there may be more to take at once."""
        # Half of what is free at most: a batch that arrives during the query finds slots too.
        with self._runs.reserving(min(CLAIM_MAX, -(-self._runs.free // 2))) as free:
            if free == 0 or not self._leases.held:
                return False
            claimed = await self._tasks.update_tasks_claimed_if_due_or_lost(
                self._leases.worker_id, free, WORKERS_LOST_MAX, alone_from=WORKERS_LOST_BEFORE_ALONE
            )
        self._schedule.slot_wanted = len(claimed) >= free
        for task in claimed:
            _claims.labels(task.waited_for or _LOST_WORKER).inc()
            self._start_run(task)
        return len(claimed) >= free
