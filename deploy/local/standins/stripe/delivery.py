"""Delivers events to the webhook URL: signed, in order, tried again when refused, or spoilt as a rule says."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from deploy.local.standins.control import ControlError
from deploy.local.standins.rules import Match, Rules
from deploy.local.standins.stripe.treatment import Event, EventMatch, Settings, Treatment, signed
from deploy.local.standins.waiting import Watch

LOG_MAX = 20_000


@dataclass(slots=True)
class Attempt:
    event_id: str
    type: str
    object_id: str | None
    attempt: int
    at: float
    signature: str | None
    status: int | None = None
    error: str | None = None


@dataclass(slots=True)
class _Job:
    event: Event
    render: Callable[[], Event]
    treatment: Treatment


def _no_key(_: Event | Match[Event]) -> None:
    """Rules for events are few: none is found by a key."""


class Deliveries:
    def __init__(self, settings: Settings, watch: Watch) -> None:
        self.settings = settings
        self._watch = watch
        self.rules: Rules[Event, Treatment] = Rules(EventMatch, Treatment, _no_key)
        self._queue: deque[_Job] = deque()
        self._held: list[_Job] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: set[asyncio.Task[None] | None] = set()
        self._session: aiohttp.ClientSession | None = None
        self._attempts: deque[Attempt] = deque(maxlen=LOG_MAX)
        self._clear_counts()

    def _clear_counts(self) -> None:
        self._counts = {"pending": 0, "delivered": 0, "failed": 0, "dropped": 0, "attempts": 0}

    def add(self, event: Event, render: Callable[[], Event], treatment: Treatment | None = None) -> None:
        """Queue one event; a given treatment stands in place of the rules."""
        if self.settings.url is None:
            return
        taken = self.rules.take(event) if treatment is None else None
        chosen = treatment or (taken[1] if taken else Treatment())
        if chosen.drop:
            self._counts["dropped"] += 1
            return
        job = _Job(event, render, chosen)
        if self.settings.hold or chosen.hold:
            self._held.append(job)
            return
        self._enqueue(job)

    def release(self, order: str, seed: int, count: int | None) -> int:
        """Send held events, first the oldest (`first`), the newest (`last`), or shuffled by the seed (`shuffled`)."""
        if order not in ("first", "last", "shuffled"):
            raise ControlError("order is one of first, last, shuffled")
        if order == "last":
            self._held.reverse()
        if order == "shuffled":
            random.Random(seed).shuffle(self._held)
        released, self._held = self._held[:count], [] if count is None else self._held[count:]
        if order == "last":
            self._held.reverse()
        for job in released:
            self._enqueue(job)
        return len(released)

    def counters(self) -> dict[str, int]:
        return self._counts | {"held": len(self._held)}

    def log(self) -> list[dict[str, Any]]:
        return [asdict(attempt) for attempt in self._attempts]

    def clear_log(self) -> None:
        self._attempts.clear()

    def reset(self, settings: Settings) -> None:
        """Forget what was not sent yet; an attempt under way ends uncounted."""
        self.settings = settings
        for task in self._tasks:
            task.cancel()
        self._workers.clear()
        self._queue.clear()
        self._held.clear()
        self._attempts.clear()
        self.rules.clear()
        self._clear_counts()
        self._watch.changed()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()

    def _enqueue(self, job: _Job) -> None:
        self._counts["pending"] += job.treatment.copies
        if job.treatment.delay_ms:
            # A delayed event leaves the queue to those behind it: that is what reorders them.
            self._start(self._delayed(job))
            return
        self._queue.append(job)
        if len(self._workers) < self.settings.parallel:
            self._workers.add(self._start(self._work()))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work(self) -> None:
        try:
            while self._queue:
                await self._deliver(self._queue.popleft())
        finally:
            # Here and not in a callback: an event queued in between would find a worker that no longer works.
            self._workers.discard(asyncio.current_task())

    async def _delayed(self, job: _Job) -> None:
        await asyncio.sleep(job.treatment.delay_ms / 1000)
        await self._deliver(job)

    async def _deliver(self, job: _Job) -> None:
        for _ in range(job.treatment.copies):
            if await self._try(job, 1):
                self._done(job, "delivered")
            else:
                # Later tries run beside the queue, as a refused event does not stop the next one at Stripe.
                self._start(self._retry(job))

    async def _retry(self, job: _Job) -> None:
        for attempt in range(2, self.settings.attempts_max + 1):
            await asyncio.sleep(self.settings.retry_ms / 1000 * 2 ** (attempt - 2))
            if await self._try(job, attempt):
                self._done(job, "delivered")
                return
        self._done(job, "failed")

    def _done(self, job: _Job, outcome: str) -> None:
        self._counts["pending"] -= 1
        self._counts[outcome] += 1
        if outcome == "delivered":
            job.event["pending_webhooks"] = 0
        self._watch.changed()

    async def _try(self, job: _Job, attempt: int) -> bool:
        body, headers = signed(job.render(), job.treatment, self.settings.secret)
        event, item = job.event, job.event["data"]["object"]
        entry = Attempt(
            event["id"], event["type"], item.get("id"), attempt, time.monotonic(), headers.get("Stripe-Signature")
        )
        self._attempts.append(entry)
        self._counts["attempts"] += 1
        try:
            entry.status = await self._post(body, headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            entry.error = f"{type(error).__name__}: {error}"
        return entry.status is not None and 200 <= entry.status < 300

    async def _post(self, body: bytes, headers: dict[str, str]) -> int:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=self.settings.timeout_seconds)
        async with self._session.post(
            self.settings.url or "", data=body, headers=headers, timeout=timeout, allow_redirects=False
        ) as reply:
            await reply.read()
            return reply.status
