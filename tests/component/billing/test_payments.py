"""A payment that is refunded or disputed, from Stripe's event to the decision."""

from __future__ import annotations

from typing import Any

from tests.component.billing.driver import Billing


async def say(billing: Billing, event_type: str, **fields: Any) -> None:
    """Put an object into Stripe, and let it announce this."""
    await billing.control.ask("POST", "/events", {"type": event_type, "object": fields})


async def paid(billing: Billing, made: dict[str, Any]) -> dict[str, Any]:
    """The charge of a subscription's latest invoice."""
    intent = {"type": "payment_intent", "payment_intent": f"pi_{made['id']}"}
    invoice = made["latest_invoice"]
    invoice_id = invoice["id"] if isinstance(invoice, dict) else invoice
    await say(
        billing,
        "invoice_payment.paid",
        id=f"inpay_{made['id']}",
        object="invoice_payment",
        invoice=invoice_id,
        payment=intent,
    )
    return {
        "id": f"ch_{made['id']}",
        "object": "charge",
        "customer": made["customer"],
        "payment_intent": intent["payment_intent"],
        "livemode": False,
        "amount": 2000,
        "amount_refunded": 0,
    }


async def test_a_refund_of_the_present_period_denies_and_one_of_a_part_does_not(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    charge = await paid(billing, made)
    await say(billing, "charge.refunded", **charge | {"amount_refunded": 500})
    await billing.settled()
    assert (await billing.eligibility(account_id))["reasons"] == ["active", "partial_refund"]
    await say(billing, "charge.refunded", **charge | {"amount_refunded": 2000})
    denied = await billing.decides(account_id, "DENY", "refunded")
    assert denied["action_hint"] == "contact_support"


async def test_a_dispute_is_told_and_denies_once_it_is_lost(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    charge = await paid(billing, made)
    await say(billing, "charge.succeeded", **charge)
    dispute = {"id": f"dp_{made['id']}", "object": "dispute", "charge": charge["id"]}
    await say(billing, "charge.dispute.created", **dispute, status="needs_response")
    await billing.settled()
    assert (await billing.eligibility(account_id))["reasons"] == ["active", "dispute_open"]
    # The event says what it likes: what counts is the object as Stripe has it now.
    await say(billing, "charge.dispute.closed", **dispute, status="lost")
    await billing.decides(account_id, "DENY", "dispute_lost")
    await say(billing, "charge.dispute.updated", **dispute, status="won")
    answer = await billing.decides(account_id, "ALLOW", "active")
    assert answer["reasons"] == ["active", "dispute_cleared"]


async def test_a_warning_of_fraud_is_told_and_changes_nothing(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    charge = await paid(billing, made)
    await say(billing, "charge.succeeded", **charge)
    warning = {"id": f"issfr_{made['id']}", "object": "radar.early_fraud_warning", "charge": charge["id"]}
    await say(billing, "radar.early_fraud_warning.created", **warning)
    await billing.settled()
    answer = await billing.eligibility(account_id)
    assert (answer["decision"], answer["reasons"]) == ("ALLOW", ["active", "fraud_warning"])


async def test_a_charge_of_nobody_is_ignored(billing: Billing) -> None:
    await say(billing, "charge.dispute.created", id="dp_none", object="dispute", charge="ch_none", status="lost")
    await billing.settled()
    row = await billing.database.fetchrow("SELECT state, reason FROM stripe_events WHERE charge_id = 'ch_none'")
    assert row is not None
    assert tuple(row) == ("ignored", "charge_unknown")
