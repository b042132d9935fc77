"""This process as a worker: its lease, what happens when that ends, and how it gives its work back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from services.orchestrator.routing import Routing
from services.orchestrator.runs import Run, Runs
from services.orchestrator.store import BucketStore, HeldTask, WorkerStore
from shared.clock import Clock
from shared.errors import ParleyError, Transient
from shared.ids import new_id
from shared.logs import get_logger
from shared.metrics import counter
from shared.resource import Patience, Resource

log = get_logger(__name__)

BEATS_PER_LEASE: Final = 3
BEAT_RETRY_SECONDS: Final = 0.5
HAND_BACK_SECONDS: Final = 3.0
"""Kept of the drain for writing what is handed back."""

_leases_lost = counter("leases_lost", "Leases that ended while the process lived.")
_orphans = counter("tasks_orphaned", "Tasks held by this worker in the database but run by nobody.")


class LeaseOver(Transient):
    """This process may not take on work at the moment: it has no lease."""


class Leases(Resource):
    """Keeps the worker row alive; where that fails, stops everything that hangs on it."""

    def __init__(
        self,
        workers: WorkerStore,
        buckets: BucketStore,
        routing: Routing,
        runs: Runs,
        clock: Clock,
        *,
        lease_seconds: float,
        drain_seconds: float,
    ) -> None:
        self._workers = workers
        self._buckets = buckets
        self._routing = routing
        self._runs = runs
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._drain_seconds = drain_seconds
        self._finish_by = 0.0
        """On the monotonic clock: until then runs may come to their own end."""
        self._patience = Patience()
        self._worker_id: str | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._seen_orphaned: set[tuple[str, int]] = set()
        self._beating: asyncio.Task[None] | None = None
        self.on_registered: Callable[[], None] = lambda: None

    @property
    def worker_id(self) -> str:
        """Under which this process may take on work now."""
        if self._worker_id is None:
            raise LeaseOver("the worker's lease is over; it registers again")
        return self._worker_id

    @property
    def held(self) -> bool:
        return self._worker_id is not None

    async def start(self) -> None:
        await self._buckets.insert_buckets_if_absent(self._routing.limits.keys())
        await self._register()
        self._beating = asyncio.create_task(self._keep_lease())

    def drain(self) -> None:
        self._finish_by = self._clock.monotonic() + self._drain_seconds - HAND_BACK_SECONDS

    def hurry(self) -> None:
        self._patience.lose()

    async def stop(self) -> None:
        """Finish what fits the time, hand back the rest, and leave."""
        await self._patience.wait(self._runs.until_idle(), self._finish_by - self._clock.monotonic())
        self._runs.cut_all("handed_back")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_BACK_SECONDS):
                await self._runs.until_idle()
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        await self._leave()

    async def _register(self) -> None:
        """A new id each time: an id whose lease has ended never comes back."""
        began = self._clock.monotonic()
        worker_id = new_id("wrk")
        await self._workers.insert_worker(worker_id, self._lease_seconds)
        self._worker_id = worker_id
        self._arm(began)
        self.on_registered()
        log.info("worker.registered", worker_id=worker_id)

    def _arm(self, began: float) -> None:
        """Counted from before the write was sent, so this clock runs out before the database's does."""
        if self._expiry is not None:
            self._expiry.cancel()
        left_seconds = self._lease_seconds - (self._clock.monotonic() - began)
        self._expiry = asyncio.get_running_loop().call_later(left_seconds, self._lease_ended)

    def _lease_ended(self) -> None:
        log.error("lease.lost", worker_id=self._worker_id)
        _leases_lost.inc()
        self._drop_lease()
        # Somebody else may run these already.
        self._runs.cut_all("lost")

    def _drop_lease(self) -> None:
        self._worker_id = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    async def _keep_lease(self) -> None:
        last_id = self._worker_id
        pause_seconds = self._lease_seconds / BEATS_PER_LEASE
        while True:
            await self._clock.sleep(pause_seconds)
            try:
                if self._worker_id is None:
                    await self._register_again(last_id)
                else:
                    await self._beat(self._worker_id)
                last_id = self._worker_id or last_id
                pause_seconds = self._lease_seconds / BEATS_PER_LEASE
            except ParleyError as error:  # whatever it is, a loop that ended here would end the lease for good
                log.warning("heartbeat.missed", error=str(error))
                pause_seconds = min(pause_seconds, BEAT_RETRY_SECONDS)

    async def _register_again(self, old_id: str | None) -> None:
        """After an outage: what the old id still holds is ours to give back, for we know that we stopped it."""
        await self._runs.until_idle()
        if old_id is not None:
            handed_back = await self._workers.update_tasks_handed_back_if_held(old_id)
            log.warning("worker.registers_again", worker_id=old_id, handed_back=handed_back)
        await self._register()

    async def _beat(self, worker_id: str) -> None:
        began = self._clock.monotonic()
        before = dict(self._runs.running)
        if not await self._workers.update_lease_if_unexpired(worker_id, self._lease_seconds):
            if self._worker_id == worker_id:
                self._lease_ended()
            return
        # The lease may have run out here while the answer was on its way: then it stays over.
        if self._worker_id != worker_id:
            return
        self._arm(began)
        await self._compare(worker_id, before)
        self._routing.set_resting(await self._buckets.select_cooldowns())

    async def _compare(self, worker_id: str, before: Mapping[str, Run]) -> None:
        """What the database says this worker runs, against what it does run."""
        held = {task.request_id: task for task in await self._workers.select_held(worker_id)}
        for request_id, run in before.items():
            self._check_run(run, held.get(request_id))
        orphaned = {
            (task.request_id, task.fence) for task in held.values() if task.request_id not in self._runs.running
        }
        # Seen twice: a claim's answer may still have been on its way to us the first time.
        lost = orphaned & self._seen_orphaned
        self._seen_orphaned = orphaned - lost
        if lost:
            _orphans.inc(len(lost))
            log.error("tasks.orphaned", count=len(lost))
            await self._workers.update_tasks_handed_back_if_held(worker_id, [request_id for request_id, _ in lost])
            self.on_registered()

    @staticmethod
    def _check_run(run: Run, held: HeldTask | None) -> None:
        if held is None or held.fence != run.task.fence:
            run.cut("lost")
        elif held.cancel_requested:
            run.cut("cancelled")

    async def _leave(self) -> None:
        worker_id = self._worker_id
        self._drop_lease()
        if worker_id is None:
            return
        try:
            async with asyncio.timeout(HAND_BACK_SECONDS):
                await self._workers.update_tasks_handed_back_if_held(worker_id)
                await self._workers.update_lease_ended(worker_id)
        except (Transient, TimeoutError) as error:
            # Then the others wait for the end of the lease.
            log.warning("lease.not_ended", error=str(error))
