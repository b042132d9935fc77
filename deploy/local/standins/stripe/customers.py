"""Customers: create, retrieve, update, delete, list."""

from deploy.local.standins.stripe import subscriptions
from deploy.local.standins.stripe.form import Params, merged_metadata
from deploy.local.standins.stripe.listing import filtered, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State

_PLAIN = ("email", "name", "description", "phone")


def create(state: State, asked: Asked) -> Object:
    customer: Object = {
        "id": state.ids.new("cus"),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": state.now(),
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "email": None,
        "invoice_prefix": "PARLEY",
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": merged_metadata({}, asked.params),
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    customer |= _plain(asked.params)
    state.put("customer", customer)
    state.emit("customer.created", customer, request=asked.request_id)
    return customer


def retrieve(state: State, _: Asked, identity: str) -> Object:
    """A deleted customer is answered as a stub, not as 404."""
    customer = state.get("customer", identity)
    return _stub(identity) if customer.get("deleted") else customer


def update(state: State, asked: Asked, identity: str) -> Object:
    customer = state.customer(identity)
    new = _plain(asked.params) | {"metadata": merged_metadata(customer["metadata"], asked.params)}
    previous = {name: customer[name] for name, value in new.items() if customer[name] != value}
    customer |= new
    if previous:
        state.emit("customer.updated", customer, previous, asked.request_id)
    return customer


def delete(state: State, asked: Asked, identity: str) -> Object:
    """Deleting a customer also cancels its subscriptions, and says so first."""
    customer = state.customer(identity)
    for subscription in subscriptions.of_customer(state, identity):
        subscriptions.end(state, subscription, asked.request_id)
    state.emit("customer.deleted", customer, request=asked.request_id)
    customer["deleted"] = True
    return _stub(identity)


def list_page(state: State, asked: Asked) -> Object:
    alive = [customer for customer in state.all("customer") if not customer.get("deleted")]
    return page(filtered(alive, asked, "email"), asked)


def _plain(params: Params) -> Object:
    return {name: params[name] or None for name in _PLAIN if name in params}


def _stub(identity: str) -> Object:
    return {"id": identity, "object": "customer", "deleted": True}
