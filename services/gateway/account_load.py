"""How many open requests an account has: counted at most once a second, and in between by what was accepted here."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from services.gateway.store import RequestStore
from shared.clock import Clock

_COUNT_SECONDS: Final = 1.0
_ACCOUNTS_MAX: Final = 10_000


@dataclass(slots=True)
class _Count:
    open_requests: int
    expires_at: float


class AccountLoad:
    """A bound against one account filling the house, not a quota: several replicas may pass it by a second's worth."""

    def __init__(self, requests: RequestStore, clock: Clock, *, open_requests_max: int) -> None:
        self._requests = requests
        self._clock = clock
        self._open_requests_max = open_requests_max
        self._counts: OrderedDict[str, _Count] = OrderedDict()

    async def is_full(self, account_id: str) -> bool:
        count = self._counts.get(account_id)
        if count is None or count.expires_at <= self._clock.monotonic():
            count = await self._count(account_id)
        return count.open_requests >= self._open_requests_max

    def add(self, account_id: str) -> None:
        """One more was accepted here."""
        if (count := self._counts.get(account_id)) is not None:
            count.open_requests += 1

    async def _count(self, account_id: str) -> _Count:
        # Whoever comes meanwhile goes by the old count, so that a busy account is counted once a second.
        previous = self._counts.get(account_id)
        expires_at = self._clock.monotonic() + _COUNT_SECONDS
        if previous is not None:
            previous.expires_at = expires_at
        open_requests = await self._requests.select_open_request_count(account_id, self._open_requests_max)
        count = self._counts[account_id] = _Count(open_requests, expires_at)
        self._counts.move_to_end(account_id)
        if len(self._counts) > _ACCOUNTS_MAX:
            self._counts.popitem(last=False)
        return count
