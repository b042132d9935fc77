"""Invoices of subscriptions: made when a period begins, paid or left open."""

from deploy.local.standins.stripe.listing import as_list, filtered, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State


def bill(state: State, subscription: Object, reason: str, outcome: str, request: str | None = None) -> Object:
    """Make the invoice of the current period and say what became of it: `paid`, `open`, or `failed` to be paid."""
    invoice = _invoice(state, subscription, reason)
    state.put("invoice", invoice)
    subscription["latest_invoice"] = invoice["id"]
    state.emit("invoice.created", invoice, request=request)
    invoice |= {"status": "open", "attempted": outcome != "open"}
    invoice["status_transitions"]["finalized_at"] = state.now()
    state.emit("invoice.finalized", invoice, request=request)
    if outcome == "paid":
        pay(state, invoice, request)
    if outcome == "failed":
        fail(state, invoice, request)
    return invoice


def pay(state: State, invoice: Object, request: str | None = None) -> None:
    total = invoice["total"]
    invoice |= {"status": "paid", "amount_paid": total, "amount_remaining": 0, "attempted": True}
    invoice["attempt_count"] += 1
    invoice["status_transitions"]["paid_at"] = state.now()
    for event in ("invoice.paid", "invoice.payment_succeeded"):
        state.emit(event, invoice, request=request)


def fail(state: State, invoice: Object, request: str | None = None) -> None:
    invoice |= {"attempted": True, "attempt_count": invoice["attempt_count"] + 1}
    state.emit("invoice.payment_failed", invoice, request=request)


def list_page(state: State, asked: Asked) -> Object:
    found = filtered(state.all("invoice"), asked, "customer", "status")
    wanted = asked.params.get("subscription")
    if wanted is not None:
        found = [i for i in found if i["parent"]["subscription_details"]["subscription"] == wanted]
    return page(found, asked)


def _invoice(state: State, subscription: Object, reason: str) -> Object:
    identity, now, items = state.ids.new("in"), state.now(), subscription["items"]["data"]
    total = sum((item["price"]["unit_amount"] or 0) * (item["quantity"] or 1) for item in items)
    if subscription["status"] == "trialing":
        total = 0
    return {
        "id": identity,
        "object": "invoice",
        "amount_due": total,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": total,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {"enabled": False, "liability": None, "status": None},
        "billing_reason": reason,
        "collection_method": subscription["collection_method"],
        "created": now,
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "customer_email": None,
        "default_payment_method": None,
        "description": None,
        "discounts": [],
        "due_date": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "lines": as_list([_line(state, item, subscription) for item in items], f"/v1/invoices/{identity}/lines"),
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": f"PARLEY-{len(state.objects.get('invoice', {})) + 1:04d}",
        "parent": {
            "type": "subscription_details",
            "quote_details": None,
            "subscription_details": {
                "metadata": dict(subscription["metadata"]),
                "subscription": subscription["id"],
            },
        },
        "payment_settings": {"payment_method_options": None, "payment_method_types": None},
        "payments": as_list([], f"/v1/invoice_payments?invoice={identity}"),
        "period_end": now,
        "period_start": now,
        "status": "draft",
        "status_details": None,
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": total,
        "total": total,
        "total_taxes": [],
        "webhooks_delivered_at": None,
    }


def _line(state: State, item: Object, subscription: Object) -> Object:
    return {
        "id": state.ids.new("il"),
        "object": "line_item",
        "amount": (item["price"]["unit_amount"] or 0) * (item["quantity"] or 1),
        "currency": subscription["currency"],
        "description": None,
        "livemode": False,
        "metadata": {},
        "parent": {
            "type": "subscription_item_details",
            "invoice_item_details": None,
            "subscription_item_details": {
                "proration": False,
                "subscription": subscription["id"],
                "subscription_item": item["id"],
            },
        },
        "period": {"start": item["current_period_start"], "end": item["current_period_end"]},
        "pricing": {
            "type": "price_details",
            "price_details": {"price": item["price"]["id"], "product": item["price"]["product"]},
            "unit_amount_decimal": item["price"]["unit_amount_decimal"],
        },
        "quantity": item["quantity"],
    }
