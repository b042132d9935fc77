"""`expand[]`: replaces ids by their objects along a path such as `data.customer` or `latest_invoice`."""

import copy
from typing import Any

from deploy.local.standins.stripe.errors import StripeError
from deploy.local.standins.stripe.form import Params
from deploy.local.standins.stripe.listing import as_list
from deploy.local.standins.stripe.state import State

DEPTH_MAX = 4


def expanded(state: State, item: dict[str, Any], params: Params) -> dict[str, Any]:
    """`item` is a copy that may be changed."""
    for path in params.get("expand") or ():
        parts = str(path).split(".")
        if len(parts) > DEPTH_MAX:
            raise StripeError(400, f"You cannot expand more than {DEPTH_MAX} levels of a property", param="expand")
        _expand(state, item, parts)
    return item


def _expand(state: State, node: Any, parts: list[str]) -> None:
    if isinstance(node, list):
        for inner in node:
            _expand(state, inner, parts)
        return
    if not parts or not isinstance(node, dict):
        return
    name, rest = parts[0], parts[1:]
    value = node.get(name)
    if isinstance(value, str):
        value = node[name] = copy.deepcopy(state.find(value) or {"id": value})
    if value is None and node.get("object") == "customer" and name == "subscriptions":
        mine = [s for s in state.all("subscription") if s["customer"] == node["id"] and s["status"] != "canceled"]
        value = node[name] = as_list(copy.deepcopy(mine), f"/v1/customers/{node['id']}/subscriptions")
    _expand(state, value, rest)
