"""What a service is assembled from: things that start, are told to go, and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar


class Resource:
    """One part of a service with a life of its own. Every method may be left as it is."""

    start_seconds_max: ClassVar[float | None] = 30.0
    """A start that takes longer has failed: what it waits for may be gone for good. None: it has bounds of its own."""

    async def start(self) -> None:
        """Become usable. Raising ends the process."""

    def enter_lame_duck(self) -> None:
        """Still serve whoever comes, but ask them to go elsewhere: those who route to us may not know yet."""

    def drain(self) -> None:
        """Take on nothing new and let waiters go: the process is about to stop."""

    def hurry(self) -> None:
        """Somebody asked for the end once more: wait for nothing that takes long, neither now nor in `stop`."""

    async def stop(self) -> None:
        """Finish what was begun, then let go. Called once, after `drain`, in reverse order of starting."""


class Patience:
    """How long to wait for what is under way when the process ends: so many seconds, or until it is lost."""

    def __init__(self) -> None:
        self._lost = asyncio.Event()

    def lose(self) -> None:
        """Wait no longer, now or later."""
        self._lost.set()

    async def wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> None:
        """Return when `work` is done, after `seconds`, or once patience is lost; what is not done then is cancelled."""
        tasks = {asyncio.ensure_future(work), asyncio.ensure_future(self._lost.wait())}
        try:
            await asyncio.wait(tasks, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
