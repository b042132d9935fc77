"""May this account send requests? The local copy is a courtesy; only billing's own word refuses."""

from __future__ import annotations

from services.gateway.peers import Billing
from services.gateway.records import Caller
from shared.clock import Clock
from shared.contracts.billing import Eligibility
from shared.errors import Problem, Transient
from shared.http_client import PeerRefused
from shared.logs import get_logger
from shared.metrics import counter

log = get_logger(__name__)

_confirmations = counter("eligibility_confirmations", "Denied and unknown accounts put to billing.", ("answer",))


class EligibilityCheck:
    def __init__(self, billing: Billing, clock: Clock) -> None:
        self._billing = billing
        self._clock = clock

    async def refusal(self, caller: Caller) -> Problem | None:
        """The 402 for this caller, or None. Where billing cannot be asked the hold will decide."""
        if not self._is_worth_asking(caller.eligibility):
            return None
        try:
            present = await self._billing.eligibility(caller.account_id)
        except (Transient, PeerRefused) as error:
            log.warning("eligibility.unconfirmed", account_id=caller.account_id, error=str(error))
            _confirmations.labels("none").inc()
            return None
        _confirmations.labels(present.decision).inc()
        return payment_required(present) if present.decision == "DENY" else None

    def _is_worth_asking(self, copy: Eligibility | None) -> bool:
        """A DENY that still counts. And no copy at all: nobody ever asked about this account, so nothing was heard."""
        if copy is None:
            return True
        return copy.decision == "DENY" and (copy.valid_until is None or copy.valid_until > self._clock.now())


def payment_required(eligibility: Eligibility) -> Problem:
    reason = eligibility.reasons[0] if eligibility.reasons else "denied"
    return Problem(
        402,
        "payment_required",
        "Billing denies this account new requests. `action_hint` names what would help.",
        headers={"x-should-retry": "false"},
        extra={"reason": reason, "reasons": eligibility.reasons, "action_hint": eligibility.action_hint},
    )
