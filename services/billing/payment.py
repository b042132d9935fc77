"""Facts about a payment that Stripe has said something about since: disputed, refunded, taken for a fraud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.billing.reasons import Reason


@dataclass(frozen=True)
class PaymentFact:
    """One charge as Stripe has it now. `invoice_id` is None where no invoice asked for it."""

    charge_id: str
    invoice_id: str | None
    livemode: bool | None
    amount: int
    """In the currency's smallest unit, as is what was refunded."""
    refunded: int
    dispute: str | None = None
    """Of several disputes the status that weighs most."""
    fraud_warning: bool = False


DISPUTE_REASONS: Final[Mapping[str, Reason]] = {
    # What weighs most comes first.
    "lost": Reason.DISPUTE_LOST,
    "prevented": Reason.DISPUTE_PREVENTED,
    "needs_response": Reason.DISPUTE_OPEN,
    "under_review": Reason.DISPUTE_OPEN,
    "warning_needs_response": Reason.DISPUTE_INQUIRY,
    "warning_under_review": Reason.DISPUTE_INQUIRY,
    "warning_closed": Reason.DISPUTE_INQUIRY,
    "won": Reason.DISPUTE_CLEARED,
}
TAKEN_BACK: Final = frozenset({Reason.DISPUTE_LOST, Reason.DISPUTE_PREVENTED, Reason.REFUNDED})
"""The money is gone again, and with it what it paid for. All other reasons only stand beside the decision."""


class NotACharge(ValueError):
    """The object has no id or no amount: it is nothing we can keep a fact about."""


def read_payment(
    charge: Mapping[str, Any], *, invoice_id: str | None, disputes: Sequence[Mapping[str, Any]], fraud_warning: bool
) -> PaymentFact:
    """The facts in Stripe's objects about one charge."""
    charge_id, amount, refunded = charge.get("id"), charge.get("amount"), charge.get("amount_refunded")
    if not isinstance(charge_id, str) or not isinstance(amount, int):
        raise NotACharge("a charge needs an id and an amount")
    livemode = charge.get("livemode")
    return PaymentFact(
        charge_id=charge_id,
        invoice_id=invoice_id,
        livemode=livemode if isinstance(livemode, bool) else None,
        amount=amount,
        refunded=refunded if isinstance(refunded, int) else 0,
        dispute=min((str(dispute.get("status")) for dispute in disputes), key=_weight, default=None),
        fraud_warning=fraud_warning,
    )


def _weight(status: str) -> int:
    """A status that nobody knows weighs as much as an open dispute."""
    known = list(DISPUTE_REASONS)
    return known.index(status if status in DISPUTE_REASONS else "needs_response")


def reasons_of(payment: PaymentFact) -> tuple[Reason, ...]:
    """What was said about it, what weighs most first."""
    said = []
    if payment.dispute is not None:
        said.append(DISPUTE_REASONS.get(payment.dispute, Reason.DISPUTE_OPEN))
    if payment.refunded > 0:
        said.append(Reason.REFUNDED if payment.refunded >= payment.amount else Reason.PARTIAL_REFUND)
    if payment.fraud_warning:
        said.append(Reason.FRAUD_WARNING)
    return tuple(sorted(said, key=lambda reason: reason not in TAKEN_BACK))
