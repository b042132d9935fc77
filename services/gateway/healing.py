"""What keeps the promise that every accepted request ends: looks after the silent, the expired and the stuck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.gateway.dispatch import Outbox, Turns
from services.gateway.peers import Results
from services.gateway.records import Due
from services.gateway.store import SweepStore
from shared.errors import Transient
from shared.http_client import PeerRefused
from shared.logs import get_logger
from shared.metrics import counter, gauge

log = get_logger(__name__)

_BATCH_MAX: Final = 200

_overdue = gauge("requests_overdue", "Open requests past their deadline and the grace. Stays 0.")
_healed = counter("requests_healed", "What was done for requests that nothing was heard of.", ("action",))


class Healing:
    def __init__(self, store: SweepStore, results: Results, turns: Turns, outbox: Outbox) -> None:
        self._store = store
        self._results = results
        self._turns = turns
        self._outbox = outbox

    async def look_after_due(self) -> None:
        """Each due request gets its ending where results has one, else its end is proposed or its command repeated."""
        while due := await self._store.update_due_checks_postponed(_BATCH_MAX):
            ended_ids = await self._end_what_has_ended(due)
            still_open = [entry for entry in due if entry.turn.request_id not in ended_ids]
            await self._abandon([entry for entry in still_open if entry.is_expired and not entry.abandoned])
            self._repeat([entry for entry in still_open if entry.abandoned or not entry.is_expired])
            if len(due) < _BATCH_MAX:
                return

    async def repair_turns(self) -> None:
        session_ids = await self._store.select_sessions_stuck(_BATCH_MAX)
        if session_ids:
            await self._turns.repair(session_ids)
            log.error("turns.repaired", count=len(session_ids))
            _healed.labels("turn_repaired").inc(len(session_ids))

    async def measure_overdue(self) -> None:
        _overdue.set(await self._store.select_overdue_count())

    async def _end_what_has_ended(self, due: Sequence[Due]) -> set[str]:
        """An ending whose message was lost is read from results. Unreachable results postpone nothing else."""
        asked = [entry.turn.request_id for entry in due if entry.was_dispatched or entry.abandoned]
        if not asked:
            return set()
        try:
            endings = await self._results.lookup(asked)
        except (Transient, PeerRefused) as error:
            log.warning("results.lookup_failed", count=len(asked), error=str(error))
            return set()
        for ending in endings:
            await self._turns.end(ending)
        _healed.labels("ended").inc(len(endings))
        return {ending.request_id for ending in endings}

    async def _abandon(self, expired: Sequence[Due]) -> None:
        if not expired:
            return
        abandoned = await self._store.update_requests_abandoned_if_expired([entry.turn.request_id for entry in expired])
        self._outbox.abandon(abandoned)
        _healed.labels("abandoned").inc(len(abandoned))
        for entry in abandoned:
            log.info("request.abandoned", request_id=entry.turn.request_id, code=entry.code)

    def _repeat(self, silent: Sequence[Due]) -> None:
        """The receivers know these ids: a repeat of what they have heard changes nothing there."""
        self._outbox.abandon([entry.abandoned for entry in silent if entry.abandoned])
        repeated = [entry for entry in silent if not entry.abandoned and entry.was_dispatched]
        self._outbox.run([entry.turn for entry in repeated])
        self._outbox.cancel([entry.turn for entry in repeated if entry.cancel_requested])
        _healed.labels("repeated").inc(len(repeated))
