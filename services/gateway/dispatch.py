"""Which request runs next, and the commands that are owed for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from typing import Final

from services.gateway.commands import session_abandoned, session_cancel_requested, session_requested
from services.gateway.records import Abandoned, Request, Turn
from services.gateway.store import SweepStore, TurnStore
from shared.contracts.gateway import RequestsMoved
from shared.contracts.message import Message
from shared.contracts.results import ResultEnded
from shared.group_commit import GroupCommit
from shared.logs import get_logger
from shared.messaging.owed import OwedPublishes
from shared.messaging.publisher import Publisher
from shared.metrics import counter

log = get_logger(__name__)

_MOVED_IDS_MAX: Final = 200

_endings = counter("results_heard", "Endings heard, by what they changed.", ("outcome",))


class Outbox:
    """Pays the commands that rows owe, and tells the replicas whose requests have moved."""

    def __init__(self, publisher: Publisher, sweeps: SweepStore, grace: timedelta) -> None:
        self._publisher = publisher
        self._sweeps = sweeps
        self._grace = grace
        self.requested = OwedPublishes(
            "session.requested",
            publisher,
            select_owed=self._select_requested,
            mark_published=lambda messages: sweeps.update_requested_paid(_ids(messages)),
            replace_refused=self._give_up_too_large,
        )
        self.cancels = OwedPublishes(
            "session.cancel_requested",
            publisher,
            select_owed=self._select_cancels,
            mark_published=lambda messages: sweeps.update_cancels_paid(_ids(messages)),
        )
        self.abandons = OwedPublishes(
            "session.abandoned",
            publisher,
            select_owed=self._select_abandons,
            mark_published=lambda messages: sweeps.update_abandons_paid(_ids(messages)),
        )

    def run(self, turns: Iterable[Turn]) -> None:
        self.requested.pay([session_requested(turn, self._grace) for turn in turns])

    def cancel(self, turns: Iterable[Turn]) -> None:
        self.cancels.pay([session_cancel_requested(turn) for turn in turns])

    def abandon(self, abandoned: Iterable[Abandoned]) -> None:
        self.abandons.pay([session_abandoned(entry) for entry in abandoned])

    def tell_moved(self, request_ids: Collection[str], *, still_open: bool = False) -> None:
        """A hint to every replica. Losing it costs a waiter some seconds."""
        ids = sorted(request_ids)
        for start in range(0, len(ids), _MOVED_IDS_MAX):
            moved = tuple(ids[start : start + _MOVED_IDS_MAX])
            self._publisher.send(RequestsMoved(request_ids=moved, still_open=still_open))

    async def _select_requested(self, limit: int) -> Sequence[Message]:
        return [session_requested(turn, self._grace) for turn in await self._sweeps.select_requested_owed(limit)]

    async def _give_up_too_large(self, refused: Sequence[Message]) -> Sequence[Message]:
        """What is owed instead is the proposal of their end."""
        self.abandon(await self._sweeps.update_requests_too_large_if_owed(_ids(refused)))
        return []

    async def _select_cancels(self, limit: int) -> Sequence[Message]:
        return [session_cancel_requested(turn) for turn in await self._sweeps.select_cancels_owed(limit)]

    async def _select_abandons(self, limit: int) -> Sequence[Message]:
        return [session_abandoned(abandoned) for abandoned in await self._sweeps.select_abandons_owed(limit)]


class Turns:
    """Ends requests as results says, and gives each session's turn to the next in line. `hand_over` gets what ended."""

    def __init__(self, store: TurnStore, outbox: Outbox, hand_over: Callable[[Sequence[Request]], None]) -> None:
        self._store = store
        self._outbox = outbox
        self._hand_over = hand_over
        # Endings of one session never share a batch, so that each of them passes the turn on.
        self._commits: GroupCommit[ResultEnded, None] = GroupCommit(
            "endings", self._end, key=lambda ending: ending.session_id
        )

    def end(self, ending: ResultEnded) -> asyncio.Future[None]:
        """Done once the ending is stored, or known to be of no consequence."""
        return self._commits.submit(ending)

    async def repair(self, session_ids: Sequence[str]) -> None:
        """Pass the turn on in sessions where nobody who is open has it."""
        turns = await self._store.update_turns_passed(session_ids)
        self._announce(turns, ended_ids=())

    async def _end(self, endings: Sequence[ResultEnded]) -> Sequence[None]:
        outcome = await self._store.update_requests_ended_if_open(endings)
        for ending in endings:
            self._count(ending, has_ended=ending.request_id in outcome.ended_ids, known=outcome.known_ids)
        self._hand_over(outcome.requests)
        self._announce(outcome.dispatched, outcome.ended_ids)
        return [None] * len(endings)

    def _announce(self, turns: Sequence[Turn], ended_ids: Collection[str]) -> None:
        self._outbox.run(turns)
        self._outbox.tell_moved(ended_ids)
        self._outbox.tell_moved([turn.request_id for turn in turns], still_open=True)

    def _count(self, ending: ResultEnded, *, has_ended: bool, known: frozenset[str]) -> None:
        if has_ended:
            _endings.labels("ended").inc()
            log.info("request.ended", request_id=ending.request_id, status=ending.status)
        elif ending.request_id in known:
            _endings.labels("repeated").inc()
        else:
            _endings.labels("unknown").inc()
            log.warning("request.unknown", request_id=ending.request_id)


def _ids(messages: Sequence[Message]) -> list[str]:
    return [message.subject for message in messages]
