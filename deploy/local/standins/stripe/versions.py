"""Renders objects in the shape of an API version: kept as endive, given as acacia where that is asked for."""

import copy
from dataclasses import dataclass
from typing import Any

ENDIVE = "2026-10-28.endive"
_BASIL_DATE = "2025-03-31"
_ENDIVE_DATE = "2026-10-28"


@dataclass(slots=True)
class Versions:
    """`api` forces the shape of every reply; None follows the request's Stripe-Version.

    `event` is the shape of event payloads, `event_label` the `api_version` they claim (the same, if None)."""

    api: str | None = None
    event_shape: str = ENDIVE
    event_label: str | None = None

    def of_request(self, header: str | None) -> str:
        return self.api or header or ENDIVE

    def event(self, event: dict[str, Any]) -> dict[str, Any]:
        data = event["data"] | {"object": rendered(event["data"]["object"], self.event_shape)}
        return event | {"api_version": self.event_label or self.event_shape, "data": data}


def rendered(item: Any, version: str) -> Any:
    """A copy in the version's shape; lists, deleted stubs and unknown kinds are copied as they are."""
    if isinstance(item, list):
        return [rendered(inner, version) for inner in item]
    if not isinstance(item, dict):
        return item
    if item.get("object") == "event":
        # An event keeps the shape it was made in, whoever reads it.
        return copy.deepcopy(item)
    shaped = {name: rendered(value, version) for name, value in item.items()}
    change = _CHANGES.get(str(item.get("object")))
    return change(shaped, version) if change and version[:10] < _ENDIVE_DATE and not item.get("deleted") else shaped


def _subscription(item: dict[str, Any], version: str) -> dict[str, Any]:
    item.pop("status_details", None)
    if version[:10] >= _BASIL_DATE:
        return item
    lines = copy.deepcopy(item["items"])
    for name in ("current_period_start", "current_period_end"):
        item[name] = lines["data"][0].get(name) if lines["data"] else None
        for line in lines["data"]:
            line.pop(name, None)
    item.pop("billing_mode", None)
    return item | {"items": lines, "discount": None}


def _invoice(item: dict[str, Any], version: str) -> dict[str, Any]:
    item.pop("status_details", None)
    if version[:10] >= _BASIL_DATE:
        return item
    details = ((item.pop("parent", None) or {}).get("subscription_details")) or {}
    for name in ("payments", "confirmation_secret"):
        item.pop(name, None)
    paid = item["status"] == "paid"
    return item | {
        "subscription": details.get("subscription"),
        "subscription_details": {"metadata": details.get("metadata")} if details else None,
        "paid": paid,
        "paid_out_of_band": False,
        "payment_intent": None,
        "charge": None,
    }


def _item(item: dict[str, Any], version: str) -> dict[str, Any]:
    item.pop("current_trial", None)
    return item


_CHANGES = {"subscription": _subscription, "invoice": _invoice, "subscription_item": _item}
