"""Writes what becomes of a task that this process ran: one group-committed statement under the fence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Final

from services.orchestrator.progress import announcement
from services.orchestrator.records import Conclusion
from services.orchestrator.routing import Routing
from services.orchestrator.runs import Run
from services.orchestrator.store import AttemptStore
from services.orchestrator.task import Finish, HandBack, Verdict, Wait, ending, failed, moved_to
from shared import tracing
from shared.clock import Clock
from shared.contracts.orchestrator import SessionProgressed
from shared.errors import Transient
from shared.group_commit import GroupCommit
from shared.logs import get_logger
from shared.messaging.owed import OwedPublishes
from shared.metrics import counter
from shared.postgres import DatabaseRefused

log = get_logger(__name__)

_PAUSE_SECONDS_FIRST: Final = 0.2
_PAUSE_SECONDS_MAX: Final = 2.0

_zombie_writes = counter("zombie_writes", "Writes about a task that were refused because its fence had moved on.")
_finished = counter("tasks_finished", "Tasks that this process brought to their end, by outcome.", ("outcome",))


class Concluding:
    """The last write of every run. It is tried until it succeeds or the lease is over."""

    def __init__(
        self,
        attempts: AttemptStore,
        routing: Routing,
        owed: OwedPublishes,
        send: Callable[[SessionProgressed], None],
        expect: Callable[[datetime], None],
        clock: Clock,
    ) -> None:
        self._attempts = attempts
        self._routing = routing
        self._owed = owed
        self._send = send
        self._expect = expect
        self._clock = clock
        self._group: GroupCommit[Conclusion, bool] = GroupCommit(
            "tasks_concluded", self._flush, key=lambda conclusion: conclusion.request_id
        )

    async def conclude(self, run: Run, verdict: Verdict) -> None:
        conclusion = self._conclusion(run, verdict)
        try:
            with tracing.span("conclude", {"parley.task_state": conclusion.state}):
                moved = await self._written(run, conclusion)
        except DatabaseRefused as error:
            # The answer cannot be stored; calling the provider again would only cost again.
            log.error("task.refused_by_database", exc_info=error)
            conclusion = self._conclusion(run, failed("internal_error", "The answer could not be stored."))
            moved = await self._written(run, conclusion)
        if not moved:
            _zombie_writes.inc()
            log.warning("task.fenced_off", fence=run.task.fence)
        elif conclusion.ending is not None:
            _finished.labels(conclusion.ending.status).inc()
            log.info("task.finished", status=conclusion.ending.status, attempts=len(run.attempts))
            self._owed.pay([conclusion.ending])
        elif isinstance(verdict, Wait):
            self._announce(run, verdict)

    def _conclusion(self, run: Run, verdict: Verdict) -> Conclusion:
        tokens = run.prompt.tokens if run.prompt else run.task.tokens
        conclusion = partial(
            Conclusion, run.request_id, run.task.fence, decision_id=run.decision_id, tokens=tokens, end=run.unwritten
        )
        match verdict:
            case Finish():
                task = replace(run.task, attempts=tuple(run.attempts), waits=(*run.task.waits, *run.waits))
                return conclusion("finished", ending=ending(task, verdict, self._clock.now()))
            case Wait():
                return conclusion(moved_to("running", "backing_off"), wait=verdict, pauses=tuple(run.waits))
            case HandBack():
                wait = Wait("capacity", self._clock.now())
                return conclusion(moved_to("running", "waiting"), wait=wait, pauses=tuple(run.waits))

    async def _written(self, run: Run, conclusion: Conclusion) -> bool:
        """False: the task is somebody else's. A lost lease ends the trying; the next owner starts afresh."""
        pause_seconds = _PAUSE_SECONDS_FIRST
        while not run.lost:
            try:
                return await self._group.submit(conclusion)
            except Transient as error:
                log.warning("task.not_written", error=str(error), seconds=pause_seconds)
            await self._clock.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _PAUSE_SECONDS_MAX)
        return False

    async def _flush(self, conclusions: Sequence[Conclusion]) -> list[bool]:
        moved = await self._attempts.update_tasks_concluded_if_fence(conclusions, self._routing.limits)
        return [conclusion.request_id in moved for conclusion in conclusions]

    def _announce(self, run: Run, wait: Wait) -> None:
        self._expect(wait.until)
        self._send(
            announcement(
                run.task.command,
                run.last_attempt,
                run.epoch,
                self._clock.now(),
                waiting_on=wait.waiting_on,
                waiting_until=wait.until,
            )
        )
