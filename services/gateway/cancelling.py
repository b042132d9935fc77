"""Cancel a request: a wish that is recorded once, told to whoever has the request, and decided by results."""

from __future__ import annotations

from services.gateway.dispatch import Outbox
from services.gateway.store import TurnStore
from shared.logs import get_logger

log = get_logger(__name__)


class Cancelling:
    def __init__(self, store: TurnStore, outbox: Outbox) -> None:
        self._store = store
        self._outbox = outbox

    async def cancel(self, request_id: str, account_id: str) -> None:
        """Nothing where it is unknown, has ended, or was cancelled before."""
        cancelled = await self._store.update_request_cancelled_if_open(request_id, account_id)
        if cancelled is None:
            return
        if cancelled.abandoned is not None:
            self._outbox.abandon([cancelled.abandoned])
        else:
            self._outbox.cancel([cancelled.turn])
        self._outbox.tell_moved([request_id])
        log.info("request.cancel_requested", request_id=request_id, was_running=cancelled.abandoned is None)
