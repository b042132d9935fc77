"""What runs beside the requests for the life of a process: periodic turns, and coroutines that are started again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from shared.clock import Clock, DatabaseClock, SystemClock
from shared.errors import Transient
from shared.logs import get_logger
from shared.metrics import counter
from shared.resource import Resource

log = get_logger(__name__)

_CANCEL_SECONDS: Final = 1.0
_RESTART_SECONDS: Final = 1.0

_turns = counter("loop_turns", "Turns of a periodic task.", ("loop", "outcome"))


class Periodic(Resource):
    """Runs a function every `interval_seconds`, or at once when woken. A failed turn waits for the next."""

    def __init__(
        self, name: str, function: Callable[[], Awaitable[None]], interval_seconds: float, *, clock: Clock | None = None
    ) -> None:
        self._name = name
        self._function = function
        self._interval_seconds = interval_seconds
        self._clock = clock or SystemClock()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        for outcome in ("done", "postponed", "failed"):  # a rate needs the zero before the first
            _turns.labels(name, outcome)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        await _cancel(self._task)

    def wake(self) -> None:
        """Run the next turn now."""
        self._woken.set()

    async def _run(self) -> None:
        while True:
            await self._wait()
            try:
                await self._function()
                _turns.labels(self._name, "done").inc()
            except Transient as error:
                _turns.labels(self._name, "postponed").inc()
                log.warning("loop.postponed", loop=self._name, error=str(error))
            except Exception as error:
                _turns.labels(self._name, "failed").inc()
                log.error("loop.failed", loop=self._name, exc_info=error)

    async def _wait(self) -> None:
        # Replicas that started together do not all sweep in the same instant.
        sleeping = asyncio.ensure_future(self._clock.sleep(self._interval_seconds * random.uniform(0.9, 1.1)))
        waking = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()
            self._woken.clear()


class Background(Resource):
    """A coroutine for the life of the process; when it raises it is logged and started again after a pause."""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._run_once = run
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        await _cancel(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self._run_once()
            except Exception as error:
                log.error("background.failed", background=self._name, exc_info=error)
            await asyncio.sleep(_RESTART_SECONDS)


async def _cancel(task: asyncio.Task[None] | None) -> None:
    """A driver takes long to let go of a database that does not answer: the others are not kept waiting for that."""
    if task is not None:
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_SECONDS)


class FollowedClock(Background):
    """Reads the database's clock before anything that asks for the time starts, and follows it from then on."""

    def __init__(self, clock: DatabaseClock) -> None:
        super().__init__("clock", clock.resample_forever)
        self._clock = clock

    async def start(self) -> None:
        await self._clock.sample()
        await super().start()
