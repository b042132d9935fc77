"""Checkout and portal sessions: made over the API, brought to their end by the control port or the page."""

from typing import Any

from deploy.local.standins.stripe import customers, invoices, subscriptions
from deploy.local.standins.stripe.errors import StripeError
from deploy.local.standins.stripe.form import Params, integer, merged_metadata, required
from deploy.local.standins.stripe.listing import filtered, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State

_DAY_SECONDS = 86_400
_MODES = ("payment", "setup", "subscription")


def create(state: State, asked: Asked) -> Object:
    params = asked.params
    mode = required(params, "mode")
    if mode not in _MODES:
        raise StripeError(400, f"Invalid mode: must be one of {', '.join(_MODES)}", param="mode")
    if mode == "subscription":
        required(params, "line_items")
    if params.get("customer"):
        state.customer(params["customer"], "customer")
    session = _session(state, params, mode)
    session["url"] = f"{asked.base_url}/c/pay/{session['id']}"
    state.checkout_params[session["id"]] = params
    return state.put("checkout.session", session)


def expire(state: State, asked: Asked, identity: str) -> Object:
    session = state.get("checkout.session", identity)
    if session["status"] != "open":
        raise StripeError(400, 'Only Checkout Sessions with a status in ["open"] can be expired.')
    session |= {"status": "expired", "url": None}
    state.emit("checkout.session.expired", session, request=asked.request_id)
    return session


def list_page(state: State, asked: Asked) -> Object:
    names = ("customer", "status", "subscription", "payment_intent")
    return page(filtered(state.all("checkout.session"), asked, *names), asked)


def complete(state: State, identity: str, payment_status: str) -> Object:
    """The customer finished the page. `unpaid` is a payment that ends later: `settle` tells how."""
    session = state.get("checkout.session", identity)
    if session["status"] != "open":
        raise StripeError(400, f"The session is {session['status']}, not open.")
    params: Params = state.checkout_params[identity]
    if session["customer"] is None:
        session["customer"] = _new_customer(state, session)["id"]
    if session["mode"] == "subscription":
        subscription = _subscribe(state, session, params, payment_status)
        session |= {"subscription": subscription["id"], "invoice": subscription["latest_invoice"]}
    session |= {"status": "complete", "payment_status": payment_status, "url": None}
    state.emit("checkout.session.completed", session)
    return session


def settle(state: State, identity: str, succeeded: bool) -> Object:
    """The end of a delayed payment."""
    session = state.get("checkout.session", identity)
    subscription = state.objects.get("subscription", {}).get(session["subscription"] or "")
    if succeeded:
        session["payment_status"] = "paid"
        if subscription is not None:
            invoices.pay(state, state.get("invoice", subscription["latest_invoice"]))
            subscriptions.change(state, subscription, {"status": "active"})
    state.emit(f"checkout.session.async_payment_{'succeeded' if succeeded else 'failed'}", session)
    return session


def create_portal(state: State, asked: Asked) -> Object:
    customer = state.customer(required(asked.params, "customer"), "customer")
    identity = state.ids.new("bps")
    session = {
        "id": identity,
        "object": "billing_portal.session",
        "configuration": "bpc_standin",
        "created": state.now(),
        "customer": customer["id"],
        "customer_account": None,
        "flow": None,
        "livemode": False,
        "locale": None,
        "on_behalf_of": None,
        "return_url": asked.params.get("return_url"),
        "url": f"{asked.base_url}/p/session/{identity}",
    }
    return state.put("billing_portal.session", session)


def _subscribe(state: State, session: Object, params: Params, payment_status: str) -> Object:
    data = params.get("subscription_data") or {}
    wanted: dict[str, Any] = {
        "customer": session["customer"],
        "items": [
            {name: line[name] for name in ("price", "quantity") if name in line} for line in params["line_items"]
        ],
        "metadata": data.get("metadata") or {},
    }
    wanted |= {name: data[name] for name in ("trial_period_days", "trial_end", "description") if name in data}
    if payment_status == "unpaid":
        wanted["payment_behavior"] = "default_incomplete"
    return subscriptions.create(state, Asked(wanted))


def _new_customer(state: State, session: Object) -> Object:
    email = session["customer_email"] or "somebody@example.com"
    return customers.create(state, Asked({"email": email}))


def _session(state: State, params: Params, mode: str) -> Object:
    now = state.now()
    total = sum(_amount(state, line) for line in params.get("line_items") or ())
    return {
        "id": state.ids.new("cs_test"),
        "object": "checkout.session",
        "adaptive_pricing": None,
        "after_expiration": None,
        "allow_promotion_codes": None,
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "billing_address_collection": None,
        "cancel_url": params.get("cancel_url"),
        "client_reference_id": params.get("client_reference_id"),
        "client_secret": None,
        "created": now,
        "currency": "usd",
        "custom_fields": [],
        "custom_text": {},
        "customer": params.get("customer") or None,
        "customer_creation": None if params.get("customer") else "always",
        "customer_details": None,
        "customer_email": params.get("customer_email"),
        "discounts": [],
        "expires_at": integer(params, "expires_at") or now + _DAY_SECONDS,
        "invoice": None,
        "livemode": False,
        "locale": None,
        "metadata": merged_metadata({}, params),
        "mode": mode,
        "payment_intent": None,
        "payment_link": None,
        "payment_method_collection": "always",
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "recovered_from": None,
        "setup_intent": None,
        "shipping_options": [],
        "status": "open",
        "subscription": None,
        "success_url": params.get("success_url"),
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
        "url": None,
    }


def _amount(state: State, line: Params) -> int:
    if "price" not in line:
        return 0
    price = state.get("price", line["price"], "line_items[0][price]")
    return int(price["unit_amount"] or 0) * (integer(line, "quantity") or 1)
