"""The list of events, which a service reads to find what its webhooks missed."""

from deploy.local.standins.stripe.form import flag
from deploy.local.standins.stripe.listing import filtered, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State


def retrieve(state: State, _: Asked, identity: str) -> Object:
    return state.versions.event(state.get("event", identity))


def list_page(state: State, asked: Asked) -> Object:
    """Filters: type, types[], created, and delivery_success, where false also means not delivered yet."""
    found = filtered(state.all("event"), asked, "type")
    types = asked.params.get("types")
    if types:
        found = [event for event in found if event["type"] in types]
    if "delivery_success" in asked.params:
        wanted = flag(asked.params, "delivery_success")
        found = [event for event in found if (event["pending_webhooks"] == 0) == wanted]
    listed = page(found, asked)
    return listed | {"data": [state.versions.event(event) for event in listed["data"]]}
