"""One method per received message. Each may be repeated and changes nothing the second time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.gateway.authentication import Authenticator
from services.gateway.dispatch import Outbox, Turns
from services.gateway.progress import ProgressWriter
from services.gateway.store import AccountStore
from shared.contracts.billing import EligibilityChanged
from shared.contracts.message import Message
from shared.contracts.results import ResultEnded, ResultUpdated
from shared.logs import get_logger

log = get_logger(__name__)


class Handlers:
    """What they publish is owed by rows, so they return nothing to publish."""

    def __init__(
        self,
        turns: Turns,
        progress: ProgressWriter,
        accounts: AccountStore,
        authenticator: Authenticator,
        outbox: Outbox,
    ) -> None:
        self._turns = turns
        self._progress = progress
        self._accounts = accounts
        self._authenticator = authenticator
        self._outbox = outbox

    async def result_ended(self, endings: Sequence[ResultEnded]) -> Sequence[Message]:
        """result.completed, result.incomplete, result.failed, result.refused, result.cancelled"""
        self._progress.drop(ending.request_id for ending in endings)
        outcomes = await asyncio.gather(*(self._turns.end(ending) for ending in endings), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        return []

    async def result_updated(self, updates: Sequence[ResultUpdated]) -> Sequence[Message]:
        moved = await self._progress.write(updates)
        if moved:
            self._outbox.tell_moved(moved, still_open=True)
        return []

    async def eligibility_changed(self, changes: Sequence[EligibilityChanged]) -> Sequence[Message]:
        newest: dict[str, EligibilityChanged] = {}
        for change in changes:
            known = newest.get(change.account_id)
            if known is None or known.sequence < change.sequence:
                newest[change.account_id] = change
        stored = await self._accounts.insert_eligibilities_if_newer(list(newest.values()))
        self._authenticator.forget(stored)
        for account_id in newest.keys() - stored:
            log.warning("account.unknown", account_id=account_id)
        return []
