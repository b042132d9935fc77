"""What billing does when a request has ended: settle its hold, or let it go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.billing.hold import HoldEnding, ending_of
from services.billing.store.holds import HoldStore
from shared.clock import Clock
from shared.contracts.message import Message
from shared.contracts.results import ResultEnded
from shared.errors import Transient, Unprocessable
from shared.metrics import counter

_ROUNDS_MAX: Final = 5

_ended = counter("billing_holds_ended", "Endings of holds, by what was done and why.", ("state", "reason"))


class Handlers:
    """The rule that prices an ending is `hold.ending_of`; each ending is applied once, whatever is delivered twice."""

    def __init__(self, holds: HoldStore, clock: Clock) -> None:
        self._holds = holds
        self._clock = clock

    async def result_ended(self, messages: Sequence[ResultEnded]) -> Sequence[Message]:
        """All five types: their status says what to do."""
        endings = {message.request_id: ending_of(message) for message in messages}
        left = dict(sorted(endings.items()))
        for _ in range(_ROUNDS_MAX):
            for request_id in await self._holds.update_holds_ended(list(left.values()), now=self._clock.now()):
                _count(left.pop(request_id))
            if not left:
                return []
        await self._explain(left)
        raise Transient("holds are being written at the same time: try again")

    async def _explain(self, left: dict[str, HoldEnding]) -> None:
        """A hold of another account than the result says is nothing that time heals."""
        for request_id, stored in (await self._holds.select_holds(list(left))).items():
            if stored.account_id != left[request_id].account_id:
                raise Unprocessable("account_mismatch: the hold of this request belongs to another account")


def _count(ending: HoldEnding) -> None:
    _ended.labels(ending.to, ending.reason).inc()
