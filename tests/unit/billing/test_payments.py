"""What becomes of access when the money goes back, or may."""

from typing import Any

import pytest

from services.billing.eligibility import AccountFacts, Ask, Credit, Decision, Overlay, decide
from services.billing.payment import NotACharge, PaymentFact, read_payment
from services.billing.reasons import Reason
from tests.unit.billing.facts import DAY, NOW, PERIOD_START, POLICY, line, subscription

INVOICE = "in_1"


def payment(**fields: Any) -> PaymentFact:
    known: dict[str, Any] = {
        "charge_id": "ch_1",
        "invoice_id": INVOICE,
        "livemode": False,
        "amount": 2000,
        "refunded": 0,
    }
    return PaymentFact(**{**known, **fields})


def decided(*payments: PaymentFact, status: str = "active", asked: Ask | None = None, **fields: Any) -> Decision:
    fact = subscription(status, **{"latest_invoice_id": INVOICE, **fields})
    facts = AccountFacts((fact,), payments=payments)
    usage = {PERIOD_START: Credit(100, 100, 0)} if asked else {}
    return decide(facts, POLICY, NOW, usage, asked or Ask())


ROWS = {
    "an inquiry": (payment(dispute="warning_needs_response"), "ALLOW", Reason.DISPUTE_INQUIRY),
    "an inquiry under review": (payment(dispute="warning_under_review"), "ALLOW", Reason.DISPUTE_INQUIRY),
    "an inquiry that was closed": (payment(dispute="warning_closed"), "ALLOW", Reason.DISPUTE_INQUIRY),
    "a dispute": (payment(dispute="needs_response"), "ALLOW", Reason.DISPUTE_OPEN),
    "a dispute under review": (payment(dispute="under_review"), "ALLOW", Reason.DISPUTE_OPEN),
    "a dispute nobody knows": (payment(dispute="escalated"), "ALLOW", Reason.DISPUTE_OPEN),
    "a dispute that was lost": (payment(dispute="lost"), "DENY", Reason.DISPUTE_LOST),
    "a dispute that was won": (payment(dispute="won"), "ALLOW", Reason.DISPUTE_CLEARED),
    "a dispute that was prevented": (payment(dispute="prevented"), "DENY", Reason.DISPUTE_PREVENTED),
    "a warning of fraud": (payment(fraud_warning=True), "ALLOW", Reason.FRAUD_WARNING),
    "a refund": (payment(refunded=2000), "DENY", Reason.REFUNDED),
    "a refund of a part": (payment(refunded=1999), "ALLOW", Reason.PARTIAL_REFUND),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_table(name: str) -> None:
    fact, verdict, reason = ROWS[name]
    decision = decided(fact)
    if verdict == "DENY":
        assert (decision.verdict, decision.reasons) == ("DENY", (reason, Reason.ACTIVE))
        assert decision.action_hint == "contact_support"
    else:
        assert (decision.verdict, decision.reasons) == (verdict, (Reason.ACTIVE, reason))


def test_the_payment_of_another_period_or_mode_says_nothing() -> None:
    for other in (payment(invoice_id="in_0", refunded=2000), payment(invoice_id=None, refunded=2000)):
        assert decided(other).reasons == (Reason.ACTIVE,)
    assert decided(payment(livemode=True, dispute="lost")).reasons == (Reason.ACTIVE,)
    assert decided(payment(invoice_id=None, refunded=2000), latest_invoice_id=None).reasons == (Reason.ACTIVE,)


def test_what_weighs_most_decides_and_the_rest_is_recorded() -> None:
    decision = decided(payment(dispute="won", refunded=2000), payment(charge_id="ch_2", dispute="lost"))
    assert decision.verdict == "DENY"
    assert decision.reasons[0] in {Reason.REFUNDED, Reason.DISPUTE_LOST}
    assert set(decision.reasons) == {
        Reason.REFUNDED,
        Reason.DISPUTE_LOST,
        Reason.ACTIVE,
        Reason.DISPUTE_CLEARED,
    }


def test_a_subscription_that_permits_nothing_is_not_judged_by_its_payment() -> None:
    assert decided(payment(refunded=2000), status="unpaid").reasons == (Reason.UNPAID,)


def test_an_open_dispute_ends_overage_and_nothing_else() -> None:
    metered, over = (line("price_metered"),), Ask(tokens=50)
    assert decided(asked=over, lines=metered).reasons[0] is Reason.OVERAGE_PERMITTED
    disputed = decided(payment(dispute="needs_response"), asked=over, lines=metered)
    assert (disputed.verdict, disputed.reasons[0]) == ("DENY", Reason.QUOTA_EXHAUSTED)
    won = decided(payment(dispute="won"), asked=over, lines=metered)
    assert won.reasons[0] is Reason.OVERAGE_PERMITTED


def test_an_operators_allow_beats_a_refund() -> None:
    fact = subscription(latest_invoice_id=INVOICE)
    facts = AccountFacts((fact,), (Overlay("allow", NOW + DAY),), payments=(payment(refunded=2000),))
    decision = decide(facts, POLICY, NOW, {}, Ask())
    assert (decision.verdict, decision.reasons[:2]) == ("ALLOW", (Reason.MANUAL_ALLOW, Reason.REFUNDED))


def test_of_several_disputes_the_worst_counts() -> None:
    charge = {"id": "ch_1", "amount": 5, "amount_refunded": 0, "livemode": False}
    for statuses, worst in (
        (("won", "lost"), "lost"),
        (("warning_closed", "under_review"), "under_review"),
        (("won", "escalated"), "escalated"),
        ((), None),
    ):
        disputes = [{"status": status} for status in statuses]
        fact = read_payment(charge, invoice_id=INVOICE, disputes=disputes, fraud_warning=False)
        assert fact.dispute == worst
    with pytest.raises(NotACharge):
        read_payment({"id": "ch_1"}, invoice_id=None, disputes=(), fraud_warning=False)
