"""Active entitlements: the features of the products a customer pays for, or the list set by hand."""

import hashlib

from deploy.local.standins.stripe.errors import missing
from deploy.local.standins.stripe.form import required
from deploy.local.standins.stripe.listing import as_list, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State

_GRANTING = ("active", "trialing", "past_due")


def list_page(state: State, asked: Asked) -> Object:
    customer = required(asked.params, "customer")
    state.get("customer", customer, "customer")
    return page(_active(customer, lookup_keys(state, customer)), asked)


def retrieve(state: State, _: Asked, identity: str) -> Object:
    for customer in state.objects.get("customer", {}):
        for item in _active(customer, lookup_keys(state, customer)):
            if item["id"] == identity:
                return item
    raise missing("active entitlement", identity)


def refresh(state: State, customer: str) -> None:
    """Emit the summary when the customer's entitlements are not what they were."""
    now = lookup_keys(state, customer)
    before = state.last_entitlements.get(customer, [])
    if now == before:
        return
    state.last_entitlements[customer] = now
    url = f"/v1/customer/{customer}/entitlements"
    # The payload holds ten at most, as Stripe's does: a reader has to page the list itself.
    items = _active(customer, now)
    summary = {
        "object": "entitlements.active_entitlement_summary",
        "customer": customer,
        "entitlements": as_list(items[:10], url, len(items) > 10),
        "livemode": False,
    }
    previous = {"entitlements": as_list(_active(customer, before)[:10], url, len(before) > 10)}
    state.emit("entitlements.active_entitlement_summary.updated", summary, previous)


def lookup_keys(state: State, customer: str) -> list[str]:
    if customer in state.entitled:
        return state.entitled[customer]
    products = {
        item["price"]["product"]
        for subscription in state.objects.get("subscription", {}).values()
        if subscription["customer"] == customer and subscription["status"] in _GRANTING
        for item in subscription["items"]["data"]
    }
    return sorted({key for product in products for key in state.features_of_product.get(product, ())})


def _active(customer: str, keys: list[str]) -> list[Object]:
    return [
        {
            "id": f"ent_{hashlib.sha256(f'{customer}:{key}'.encode()).hexdigest()[:24]}",
            "object": "entitlements.active_entitlement",
            "feature": f"feat_{hashlib.sha256(key.encode()).hexdigest()[:24]}",
            "livemode": False,
            "lookup_key": key,
        }
        for key in keys
    ]
