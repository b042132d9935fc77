"""Subscriptions: create, retrieve, update, cancel, pause, resume, list, and what the control port does to them."""

import copy
from typing import Any

from deploy.local.standins.stripe import entitlements, invoices
from deploy.local.standins.stripe.errors import StripeError, missing
from deploy.local.standins.stripe.form import Params, flag, integer, merged_metadata, required
from deploy.local.standins.stripe.listing import filtered, page
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State
from deploy.local.standins.stripe.subscription_object import new_item, new_subscription, period_end

STATUSES = (
    "incomplete",
    "incomplete_expired",
    "trialing",
    "active",
    "past_due",
    "canceled",
    "unpaid",
    "paused",
)
ENDED = ("canceled", "incomplete_expired")
_PAUSES = ("void", "keep_as_draft", "mark_uncollectible")
_DAY_SECONDS = 86_400


def create(state: State, asked: Asked) -> Object:
    params = asked.params
    customer = state.customer(required(params, "customer"), "customer")
    lines = required(params, "items")
    identity, now = state.ids.new("sub"), state.now()
    trial_end = _trial_end(params, now)
    items = [new_item(state, identity, line, now, trial_end) for line in lines]
    subscription = new_subscription(state, customer["id"], identity, items)
    subscription["metadata"] = merged_metadata({}, params)
    if trial_end is not None:
        subscription |= {"status": "trialing", "trial_start": now, "trial_end": trial_end}
    elif params.get("payment_behavior") == "default_incomplete":
        subscription["status"] = "incomplete"
    subscription |= _changes(state, subscription, params)
    state.put("subscription", subscription)
    state.emit("customer.subscription.created", subscription, request=asked.request_id)
    outcome = "open" if subscription["status"] == "incomplete" else "paid"
    invoices.bill(state, subscription, "subscription_create", outcome, asked.request_id)
    entitlements.refresh(state, customer["id"])
    return subscription


def retrieve(state: State, _: Asked, identity: str) -> Object:
    return state.get("subscription", identity)


def update(state: State, asked: Asked, identity: str) -> Object:
    subscription = state.get("subscription", identity)
    if subscription["status"] in ENDED and set(asked.params) - {"metadata", "cancellation_details", "expand"}:
        message = "A canceled subscription can only update its cancellation_details and metadata."
        raise StripeError(400, message)
    new = _changes(state, subscription, asked.params)
    if asked.params.get("trial_end") == "now" and subscription["status"] == "trialing":
        new |= {"status": "active", "trial_end": state.now()}
    if "items" in asked.params:
        new["items"] = _changed_items(state, subscription, asked.params["items"])
    change(state, subscription, new, asked.request_id)
    return subscription


def cancel(state: State, asked: Asked, identity: str) -> Object:
    subscription = state.get("subscription", identity)
    if subscription["status"] in ENDED:
        raise missing("subscription", identity)
    details = asked.params.get("cancellation_details") or {}
    subscription["cancellation_details"] |= {"reason": "cancellation_requested"} | details
    end(state, subscription, asked.request_id)
    return subscription


def pause(state: State, asked: Asked, identity: str) -> Object:
    subscription = state.get("subscription", identity)
    change(state, subscription, paused(state, "pause_requested"), asked.request_id, "customer.subscription.paused")
    return subscription


def resume(state: State, asked: Asked, identity: str) -> Object:
    subscription = state.get("subscription", identity)
    if subscription["status"] != "paused":
        raise StripeError(400, "Only a paused subscription can be resumed.", code="subscription_not_paused")
    new = {"status": "active", "status_details": None}
    change(state, subscription, new, asked.request_id, "customer.subscription.resumed")
    return subscription


def list_page(state: State, asked: Asked) -> Object:
    wanted = asked.params.get("status")
    found = filtered(state.all("subscription"), asked, "customer", "collection_method")
    if asked.params.get("price"):
        found = [s for s in found if any(i["price"]["id"] == asked.params["price"] for i in s["items"]["data"])]
    if wanted is None:
        found = [s for s in found if s["status"] != "canceled"]
    elif wanted == "ended":
        found = [s for s in found if s["status"] in ENDED]
    elif wanted != "all":
        found = [s for s in found if s["status"] == wanted]
    return page(found, asked)


def of_customer(state: State, customer: str) -> list[Object]:
    return [s for s in state.all("subscription") if s["customer"] == customer and s["status"] not in ENDED]


def end(state: State, subscription: Object, request: str | None = None) -> None:
    now = state.now()
    subscription |= {"status": "canceled", "canceled_at": now, "ended_at": now}
    state.emit("customer.subscription.deleted", subscription, request=request)
    entitlements.refresh(state, subscription["customer"])


def paused(state: State, reason: str) -> Object:
    """The fields of a paused subscription, as endive tells the reason."""
    details = {"type": "subscription", "subscription": {"type": reason}, "transitioned_at": state.now()}
    return {"status": "paused", "status_details": {"paused": details}}


def change(
    state: State, subscription: Object, new: Object, request: str | None = None, event: str | None = None
) -> Object:
    """Apply the new fields and emit what changed; a change that changes nothing stays silent."""
    previous = {name: copy.deepcopy(subscription.get(name)) for name in new if subscription.get(name) != new[name]}
    if not previous:
        return subscription
    subscription |= new
    state.emit(event or "customer.subscription.updated", subscription, previous, request)
    entitlements.refresh(state, subscription["customer"])
    return subscription


def renew(state: State, subscription: Object, outcome: str) -> None:
    """Begin the next period: a paid one is active, a failed one past_due, with the events Stripe sends."""
    items = copy.deepcopy(subscription["items"])
    for item in items["data"]:
        item["current_period_start"] = item["current_period_end"]
        item["current_period_end"] = period_end(item["current_period_start"], item["price"]["recurring"])
    invoice = invoices.bill(state, subscription, "subscription_cycle", outcome)
    status = "active" if outcome == "paid" else "past_due"
    change(state, subscription, {"items": items, "status": status, "latest_invoice": invoice["id"]})


def _trial_end(params: Params, now: int) -> int | None:
    days = integer(params, "trial_period_days")
    if days:
        return now + days * _DAY_SECONDS
    return None if params.get("trial_end") == "now" else integer(params, "trial_end")


def _changes(state: State, subscription: Object, params: Params) -> Object:
    """The fields that both create and update accept."""
    new: Object = {name: params[name] or None for name in ("description", "default_payment_method") if name in params}
    if "collection_method" in params:
        new["collection_method"] = params["collection_method"]
    if "metadata" in params:
        new["metadata"] = merged_metadata(subscription["metadata"], params)
    if "cancel_at" in params:
        new["cancel_at"] = integer(params, "cancel_at")
    if "cancel_at_period_end" in params:
        new |= _scheduled(state, subscription, flag(params, "cancel_at_period_end"))
    if "trial_end" in params and params["trial_end"] != "now":
        new["trial_end"] = integer(params, "trial_end")
    if "pause_collection" in params:
        new["pause_collection"] = _pause_collection(params["pause_collection"])
    return new


def _scheduled(state: State, subscription: Object, wanted: bool) -> Object:
    period = max(item["current_period_end"] for item in subscription["items"]["data"])
    return {
        "cancel_at_period_end": wanted,
        "cancel_at": period if wanted else None,
        "canceled_at": state.now() if wanted else None,
    }


def _pause_collection(value: Any) -> Object | None:
    if value == "":
        return None
    if not isinstance(value, dict) or value.get("behavior") not in _PAUSES:
        message = f"Invalid pause_collection[behavior]: must be one of {', '.join(_PAUSES)}"
        raise StripeError(400, message, param="pause_collection[behavior]")
    return {"behavior": value["behavior"], "resumes_at": integer(value, "resumes_at")}


def _changed_items(state: State, subscription: Object, lines: list[Params]) -> Object:
    items: Object = copy.deepcopy(subscription["items"])
    data = {item["id"]: item for item in items["data"]}
    start, until = items["data"][0]["current_period_start"], items["data"][0]["current_period_end"]
    for line in lines:
        identity = line.get("id")
        if identity is None:
            item = new_item(state, subscription["id"], line, start, until)
            data[item["id"]] = item
        elif identity not in data:
            raise missing("subscription_item", identity, "items[0][id]")
        elif flag(line, "deleted"):
            del data[identity]
        else:
            kept = {"price": data[identity]["price"]["id"], "quantity": str(data[identity]["quantity"])}
            data[identity] = new_item(state, subscription["id"], kept | line, start, until) | {"id": identity}
    if not data:
        raise StripeError(400, "A subscription must have at least one active plan.", param="items")
    return items | {"data": list(data.values())}
