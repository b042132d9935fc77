"""Reads one request, waiting for it where the client asks for that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Final

from services.gateway import snapshot
from services.gateway.headers import etag_matches
from services.gateway.peers import Billing
from services.gateway.records import Request
from services.gateway.request_state import is_ended
from services.gateway.schemas import RequestView
from services.gateway.store import RequestStore
from services.gateway.waiting import Hub
from shared.clock import Clock
from shared.contracts.billing import Charge
from shared.errors import Transient, not_found
from shared.group_commit import GroupCommit
from shared.http_client import PeerRefused
from shared.logs import get_logger

log = get_logger(__name__)

_SETTLING: Final = timedelta(seconds=1)
"""Billing hears of the end when we do; asking earlier would mostly be in vain."""
_ASK_AGAIN_SECONDS_MAX: Final = 60.0
_ASKED_MAX: Final = 10_000


def end_of(request_id: str) -> str:
    """What those wait for in the hub to whom nothing but the end is an answer. Who waits for any change waits for the
    request itself."""
    return f"{request_id} ended"


def hand_over(hub: Hub, ended: Sequence[Request]) -> None:
    """Answer those who wait here with the rows as they were written: they neither wait for the hint that goes to every
    replica, nor read again. What an end says stays so; who asks a second later is told the charge as well."""
    for request in ended:
        hub.give(request.id, request)
        hub.give(end_of(request.id), request)


@dataclass(frozen=True, slots=True)
class _Asked:
    pause_seconds: float
    again_at: float


@dataclass(frozen=True)
class Snapshot:
    """A view with its entity tag. `is_known` says that the client has it already."""

    view: RequestView
    etag: str
    is_known: bool


class RequestReader:
    def __init__(self, store: RequestStore, billing: Billing, hub: Hub, clock: Clock) -> None:
        self._store = store
        self._billing = billing
        self._hub = hub
        self._clock = clock
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        self._charges = GroupCommit("charges", self._store_charges, key=lambda charge: charge.request_id)

    async def get(self, request_id: str, account_id: str) -> Request:
        request = await self._store.select_request(request_id, account_id)
        if request is None:
            raise not_found("request")
        return await self._with_charge(request)

    def view(self, request: Request) -> RequestView:
        return snapshot.view(request, self._clock.now())

    async def read(self, request_id: str, account_id: str, *, if_none_match: list[str], wait_seconds: int) -> Snapshot:
        """The request at once; or, with a wait, when it has changed (for a client that knows a version) or ended."""

        def is_answer(request: Request) -> bool:
            if is_ended(request.state):
                return True
            return bool(if_none_match) and not snapshot.change_in(if_none_match, snapshot.change_of(self.view(request)))

        key = request_id if if_none_match else end_of(request_id)
        request = await self._hub.watch(key, partial(self.get, request_id, account_id), is_answer, wait_seconds)
        shown = self.view(request)
        etag = snapshot.etag_of(shown, snapshot.change_of(shown))
        return Snapshot(shown, etag, etag_matches(if_none_match, etag))

    async def _with_charge(self, request: Request) -> Request:
        """What it cost is asked of billing until it is known, then kept: no message brings it."""
        if not self._is_time_to_ask(request):
            return request
        try:
            charge = await self._billing.charge(request.id, request.account_id)
        except (Transient, PeerRefused) as error:
            log.info("charge.unknown", request_id=request.id, error=str(error))
            return request
        if charge is None:
            return request
        await self._charges.submit(charge)
        self._asked.pop(request.id, None)
        return replace(request, charge=charge)

    def _is_time_to_ask(self, request: Request) -> bool:
        """Not in the first second after the end was heard, and then ever less often, however many poll."""
        heard_at = request.end_heard_at or request.ended_at
        if heard_at is None or request.charge is not None or self._clock.now() < heard_at + _SETTLING:
            return False
        now, asked = self._clock.monotonic(), self._asked.get(request.id)
        if asked is not None and now < asked.again_at:
            return False
        pause_seconds = min(2 * asked.pause_seconds, _ASK_AGAIN_SECONDS_MAX) if asked else _SETTLING.total_seconds()
        self._asked[request.id] = _Asked(pause_seconds, now + pause_seconds)
        self._asked.move_to_end(request.id)
        if len(self._asked) > _ASKED_MAX:
            self._asked.popitem(last=False)
        return True

    async def _store_charges(self, charges: Sequence[Charge]) -> Sequence[None]:
        await self._store.update_charges_if_missing(charges)
        return [None] * len(charges)
