"""Hints about running requests: reduced to the newest of each, written where they say something new, many at once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from services.gateway.records import Progress
from services.gateway.store import TurnStore
from shared.clock import Clock, Pace
from shared.contracts.content import WaitingOn
from shared.contracts.results import ResultUpdated

_KNOWN_MAX: Final = 50_000
_LIFE_SIGN_SECONDS: Final = 10.0
"""How often a request that only streams is written, so that the sweeper sees that it lives."""
_TICK_SECONDS: Final = 0.1
"""Between two writes. A first hint is written at once; those that follow it closely share the next write."""


@dataclass(frozen=True, slots=True)
class _Known:
    attempt: int
    waiting_on: WaitingOn | None
    written_at: float


class ProgressWriter:
    def __init__(self, store: TurnStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: OrderedDict[str, _Known | None] = OrderedDict()
        """What was written of each request; None of those that have ended."""
        self._held: dict[str, Progress] = {}
        self._is_waiting = False
        self._pace = Pace(_TICK_SECONDS, clock)

    async def write(self, updates: Sequence[ResultUpdated]) -> set[str]:
        """The requests whose owners see something new. Returns at once where an earlier call, which still waits for
        its tick, will write these hints with its own."""
        for update in updates:
            self._hold(Progress(update.request_id, update.attempt, update.waiting_on, update.at))
        if not self._held or self._is_waiting:
            return set()
        await self._wait_for_tick()
        hints = sorted(self._held.values(), key=lambda hint: hint.request_id)
        self._held.clear()
        if not hints:
            return set()
        changed = {hint.request_id for hint in hints if not self._is_said(hint)}
        written = await self._store.update_requests_progressed_if_open(hints)
        for hint in hints:
            self._remember(hint)
        return written & changed

    def drop(self, request_ids: Iterable[str]) -> None:
        """These have an ending: what they did before it is of no use any more."""
        for request_id in request_ids:
            self._held.pop(request_id, None)
            self._keep(request_id, None)

    async def _wait_for_tick(self) -> None:
        self._is_waiting = True
        try:
            await self._pace.wait()
        finally:
            self._is_waiting = False

    def _hold(self, hint: Progress) -> None:
        held = self._held.get(hint.request_id)
        if held is None:
            if self._is_due(hint):
                self._held[hint.request_id] = hint
        elif (held.attempt, held.at) <= (hint.attempt, hint.at):
            self._held[hint.request_id] = hint

    def _is_said(self, hint: Progress) -> bool:
        known = self._known.get(hint.request_id)
        return known is not None and (known.attempt, known.waiting_on) == (hint.attempt, hint.waiting_on)

    def _is_due(self, hint: Progress) -> bool:
        if hint.request_id not in self._known:
            return True
        known = self._known[hint.request_id]
        if known is None:
            return False
        return not self._is_said(hint) or self._clock.monotonic() - known.written_at >= _LIFE_SIGN_SECONDS

    def _remember(self, hint: Progress) -> None:
        if self._known.get(hint.request_id, hint) is not None:  # it may have ended during the write
            self._keep(hint.request_id, _Known(hint.attempt, hint.waiting_on, self._clock.monotonic()))

    def _keep(self, request_id: str, known: _Known | None) -> None:
        self._known[request_id] = known
        self._known.move_to_end(request_id)
        if len(self._known) > _KNOWN_MAX:
            self._known.popitem(last=False)
