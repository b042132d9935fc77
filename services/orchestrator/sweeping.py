"""What heals and tidies by the clock: overdue tasks, the counts an operator watches, rows nobody needs any more."""

from __future__ import annotations

from typing import Final

from services.orchestrator.store import EndingStore, TaskStore, WorkerStore
from shared.metrics import gauge

DELETE_MAX: Final = 1000

_unfinished = gauge("tasks_unfinished", "Unfinished tasks of all replicas, by state.", ("state",))
_calls = gauge("attempts_in_flight", "Provider calls under way in all replicas.")


class Sweeping:
    """Each method is one turn of a periodic task."""

    def __init__(self, tasks: TaskStore, endings: EndingStore, workers: WorkerStore, *, retention_days: int) -> None:
        self._tasks = tasks
        self._endings = endings
        self._workers = workers
        self._retention_days = retention_days

    async def count(self) -> None:
        counts = await self._tasks.select_counts()
        for state in ("waiting", "running", "backing_off"):
            _unfinished.labels(state).set(counts.get(state, 0))
        _calls.set(counts["attempts"])

    async def forget(self) -> None:
        await self._workers.delete_workers_if_gone()
        while await self._endings.delete_tasks_if_published(self._retention_days, DELETE_MAX) == DELETE_MAX:
            pass
