"""The v1 API as a table: method and path, and the function that answers it."""

import re
from collections.abc import Callable
from typing import Any

from deploy.local.standins.stripe import checkout, customers, entitlements, events, invoices, products, subscriptions
from deploy.local.standins.stripe.errors import StripeError
from deploy.local.standins.stripe.listing import filtered, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State

Action = Callable[..., Object]


def _retrieve(kind: str) -> Action:
    def retrieve(state: State, _: Asked, identity: str) -> Object:
        return state.get(kind, identity)

    return retrieve


def _list(kind: str) -> Action:
    def list_page(state: State, asked: Asked) -> Object:
        return page(filtered(state.all(kind), asked, "customer", "charge", "payment_intent"), asked)

    return list_page


# Objects that nothing here makes; the control port puts them in, to go with its events.
_PUT_IN = {
    "charges": "charge",
    "disputes": "dispute",
    "refunds": "refund",
    "payment_intents": "payment_intent",
    "radar/early_fraud_warnings": "radar.early_fraud_warning",
}


def _list_invoice_payments(state: State, asked: Asked) -> Object:
    wanted = asked.params.get("payment", {})
    intent = wanted.get("payment_intent") if isinstance(wanted, dict) else None
    found = [item for item in state.all("invoice_payment") if intent in (None, item["payment"]["payment_intent"])]
    return page(found, asked)


ROUTES: dict[tuple[str, str], Action] = {
    ("POST", "/v1/customers"): customers.create,
    ("GET", "/v1/customers"): customers.list_page,
    ("GET", "/v1/customers/{id}"): customers.retrieve,
    ("POST", "/v1/customers/{id}"): customers.update,
    ("DELETE", "/v1/customers/{id}"): customers.delete,
    ("POST", "/v1/products"): products.create_product,
    ("GET", "/v1/products"): products.list_products,
    ("GET", "/v1/products/{id}"): _retrieve("product"),
    ("POST", "/v1/prices"): products.create_price,
    ("GET", "/v1/prices"): products.list_prices,
    ("GET", "/v1/prices/{id}"): _retrieve("price"),
    ("POST", "/v1/subscriptions"): subscriptions.create,
    ("GET", "/v1/subscriptions"): subscriptions.list_page,
    ("GET", "/v1/subscriptions/{id}"): subscriptions.retrieve,
    ("POST", "/v1/subscriptions/{id}"): subscriptions.update,
    ("DELETE", "/v1/subscriptions/{id}"): subscriptions.cancel,
    ("POST", "/v1/subscriptions/{id}/pause"): subscriptions.pause,
    ("POST", "/v1/subscriptions/{id}/resume"): subscriptions.resume,
    ("GET", "/v1/invoices"): invoices.list_page,
    ("GET", "/v1/invoices/{id}"): _retrieve("invoice"),
    ("POST", "/v1/checkout/sessions"): checkout.create,
    ("GET", "/v1/checkout/sessions"): checkout.list_page,
    ("GET", "/v1/checkout/sessions/{id}"): _retrieve("checkout.session"),
    ("POST", "/v1/checkout/sessions/{id}/expire"): checkout.expire,
    ("POST", "/v1/billing_portal/sessions"): checkout.create_portal,
    ("GET", "/v1/entitlements/active_entitlements"): entitlements.list_page,
    ("GET", "/v1/entitlements/active_entitlements/{id}"): entitlements.retrieve,
    ("GET", "/v1/events"): events.list_page,
    ("GET", "/v1/events/{id}"): events.retrieve,
}
ROUTES["GET", "/v1/invoice_payments"] = _list_invoice_payments
for _path, _kind in _PUT_IN.items():
    ROUTES["GET", f"/v1/{_path}"] = _list(_kind)
    ROUTES["GET", f"/v1/{_path}/{{id}}"] = _retrieve(_kind)

_PATTERNS = [
    (method, re.compile(re.escape(path).replace(r"\{id\}", "([^/]+)")), action)
    for (method, path), action in ROUTES.items()
]


def find(method: str, path: str) -> tuple[Action, list[Any]]:
    action = ROUTES.get((method, path))
    if action is not None:
        return action, []
    for wanted, pattern, found in _PATTERNS:
        match = pattern.fullmatch(path)
        if match and wanted == method:
            return found, list(match.groups())
    raise StripeError(404, f"Unrecognized request URL ({method}: {path}).")
