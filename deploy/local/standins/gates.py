"""Gates hold calls until a test lets them go: at arrival, or wherever a script names the gate."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from deploy.local.standins.control import ControlError, filled
from deploy.local.standins.rules import Match

GATES_MAX = 1_000
CallT = TypeVar("CallT")


class Gate(Generic[CallT]):
    """A closed gate. `match` holds calls at arrival; without it only scripts that name the gate wait here."""

    def __init__(self, match: Match[CallT] | None = None) -> None:
        self.match = match
        self.waiting: deque[asyncio.Future[None]] = deque()

    def release(self, count: int | None) -> int:
        released = 0
        while self.waiting and (count is None or released < count):
            future = self.waiting.popleft()
            if not future.done():
                future.set_result(None)
                released += 1
        return released


class Gates(Generic[CallT]):
    def __init__(self, match: type[Match[CallT]], held: Callable[[CallT, int], None]) -> None:
        """`held` is told of each call that begins (+1) and ends (-1) to wait."""
        self._match, self._held = match, held
        self._closed: dict[str, Gate[CallT]] = {}

    def close(self, name: str, match: dict[str, Any] | None) -> None:
        if len(self._closed) >= GATES_MAX:
            raise ControlError(f"more than {GATES_MAX} gates")
        gate = self._closed.setdefault(name, Gate())
        gate.match = None if match is None else filled(self._match, match)

    def release(self, name: str, count: int) -> int:
        """Let `count` held calls pass, the longest held first, and keep the gate closed."""
        return self._gate(name).release(count)

    def open(self, name: str) -> int:
        released = self._gate(name).release(None)
        del self._closed[name]
        return released

    def open_all(self) -> None:
        for name in list(self._closed):
            self.open(name)

    def view(self) -> dict[str, int]:
        return {name: len(gate.waiting) for name, gate in self._closed.items()}

    async def arrive(self, call: CallT) -> None:
        for name, gate in list(self._closed.items()):
            # While one gate held the call, the next may have been opened.
            if self._closed.get(name) is gate and gate.match is not None and gate.match.holds(call):
                await self._wait(call, gate)

    async def stall(self, call: CallT, name: str | None, seconds: float | None) -> None:
        """Wait at the named gate, at most so long; a gate that is not closed lets pass at once, no name never does."""
        gate = Gate[CallT]() if name is None else self._closed.get(name)
        if gate is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wait(call, gate)
        except TimeoutError:
            return

    async def _wait(self, call: CallT, gate: Gate[CallT]) -> None:
        future = asyncio.get_running_loop().create_future()
        gate.waiting.append(future)
        self._held(call, +1)
        try:
            await future
        finally:
            if future in gate.waiting:
                gate.waiting.remove(future)
            self._held(call, -1)

    def _gate(self, name: str) -> Gate[CallT]:
        if name not in self._closed:
            raise ControlError(f"no closed gate {name!r}; closed are {', '.join(self._closed) or 'none'}")
        return self._closed[name]
