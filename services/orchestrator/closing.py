"""Ends tasks from outside their run: cancelled, overtaken by a later turn, or still waiting at their deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from services.orchestrator.backoff import deadline_exceeded
from services.orchestrator.records import NewTask
from services.orchestrator.runs import Runs
from services.orchestrator.store import EndingStore, LockedTask, TaskStore
from services.orchestrator.task import (
    CANCELLED,
    SUPERSEDED,
    Finish,
    Task,
    cancelled_before_arrival,
    ending,
    moved_to,
)
from shared.clock import Clock
from shared.contracts.gateway import SessionCancelRequested
from shared.contracts.message import Message
from shared.contracts.orchestrator import SessionEnded, WaitRecord
from shared.logs import get_logger
from shared.messaging.owed import OwedPublishes
from shared.metrics import counter
from shared.postgres import Connection, Database

log = get_logger(__name__)

_expired = counter("tasks_expired", "Tasks that stood still at their deadline, and were ended.")

SWEEP_MAX: Final = 200


class Closing:
    """Writes endings under the row lock; the run of such a task, if there is one, is refused from then on."""

    def __init__(
        self, database: Database, tasks: TaskStore, endings: EndingStore, runs: Runs, owed: OwedPublishes, clock: Clock
    ) -> None:
        self._database = database
        self._tasks = tasks
        self._endings = endings
        self._runs = runs
        self._owed = owed
        self._clock = clock

    async def supersede(self, request_ids: Sequence[str]) -> None:
        """A later turn arrived, so results has an end of these already, or the gateway gave them up."""
        await self._finish(request_ids, lambda locked: SUPERSEDED if locked.task else None)
        for request_id in request_ids:
            self._runs.cut(request_id, "lost")

    async def sweep_overdue(self) -> None:
        """Whatever stands still past its deadline ends now, whether or not there is a slot for it."""
        while request_ids := await self._endings.select_overdue(SWEEP_MAX):
            _expired.inc(await self._finish(request_ids, self._if_overdue))
            if len(request_ids) < SWEEP_MAX:
                return

    async def cancel(self, commands: Sequence[SessionCancelRequested]) -> list[Message]:
        """Unknown or standing tasks finish, running ones are flagged and cut; the endings of those that had one."""
        by_id = {command.request_id: command for command in commands}
        now = self._clock.now()
        async with self._database.transaction() as connection:
            locked = await self._endings.select_tasks_for_update(connection, list(by_id), at=now)
            running = [request_id for request_id, row in locked.items() if row.state == "running"]
            standing = [row for row in locked.values() if row.state in ("waiting", "backing_off")]
            ended = [ending(_with_wait(row, now), Finish("cancelled", error=CANCELLED), now) for row in standing]
            unknown = [command for request_id, command in by_id.items() if request_id not in locked]
            if ended:
                await self._endings.update_tasks_finished_if_unfinished(connection, ended)
            if running:
                await self._endings.update_cancel_requested_if_running(connection, running)
            inserted = await self._insert_unknown(connection, unknown, now)
        ended += inserted.values()
        self._owed.pay(ended)
        for request_id in running:
            self._runs.cut(request_id, "cancelled")
        repeats: list[Message] = [row.ending for row in locked.values() if row.ending]
        arrived = [command for command in unknown if command.request_id not in inserted]
        # Their commands were taken in since we looked: now they are known.
        return repeats + (await self.cancel(arrived) if arrived else [])

    async def _insert_unknown(
        self, connection: Connection, commands: Sequence[SessionCancelRequested], now: datetime
    ) -> dict[str, SessionEnded]:
        """Finished before they arrived: the command, when it comes, finds its ending. Not those that have arrived."""
        tasks = [
            NewTask(
                source=command,
                state="finished",
                deadline_at=now,
                ending=cancelled_before_arrival(command, now),
            )
            for command in commands
        ]
        inserted = await self._tasks.insert_tasks_if_absent(connection, tasks) if tasks else set()
        return {task.request_id: task.ending for task in tasks if task.ending and task.request_id in inserted}

    async def _finish(self, request_ids: Sequence[str], judge: Callable[[LockedTask], Finish | None]) -> int:
        now = self._clock.now()
        async with self._database.transaction() as connection:
            locked = await self._endings.select_tasks_for_update(connection, request_ids, at=now)
            judged = [(row, finish) for row in locked.values() if (finish := judge(row)) is not None]
            ended = [ending(_with_wait(row, now), finish, now) for row, finish in judged]
            if ended:
                await self._endings.update_tasks_finished_if_unfinished(connection, ended)
        for ended_one in ended:
            log.info("task.finished", request_id=ended_one.request_id, status=ended_one.status)
        self._owed.pay(ended)
        return len(ended)

    def _if_overdue(self, locked: LockedTask) -> Finish | None:
        if locked.task is None or locked.state == "running":
            return None
        return Finish("failed", error=deadline_exceeded(locked.task.attempts, locked.waiting_on))


def _with_wait(locked: LockedTask, until: datetime) -> Task:
    """The task as its ending tells it: with the wait that ends now."""
    assert locked.task is not None
    moved_to(locked.state, "finished")
    if locked.waiting_on is None or locked.waiting_since is None:
        return locked.task
    wait = WaitRecord(
        reason=locked.waiting_on, after_attempt=locked.task.last_attempt, since=locked.waiting_since, until=until
    )
    same = (wait.reason, wait.after_attempt)
    before = [earlier for earlier in locked.task.waits if (earlier.reason, earlier.after_attempt) != same]
    began = [earlier.since for earlier in locked.task.waits if (earlier.reason, earlier.after_attempt) == same]
    return replace(locked.task, waits=(*before, wait.model_copy(update={"since": min([*began, wait.since])})))
