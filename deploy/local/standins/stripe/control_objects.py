"""Control routes that change Stripe's objects in ways no API call does."""

from typing import Any

from aiohttp import web

from deploy.local.standins.control import ControlError, body_of, filled
from deploy.local.standins.stripe import checkout, entitlements, invoices, subscriptions
from deploy.local.standins.stripe.state import Object, State
from deploy.local.standins.stripe.treatment import Treatment

OK = {"ok": True}


class ObjectControl:
    """Changes to Stripe's objects that no API call makes."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def change_subscription(self, request: web.Request) -> web.Response:
        state, body = self._state, await body_of(request)
        subscription = state.get("subscription", request.match_info["id"])
        emit = bool(body.pop("emit", True))
        new = self._fields(subscription, body)
        if not emit:
            subscription |= new
            return web.json_response(subscription)
        ended = new.get("status") == "canceled" and subscription["status"] != "canceled"
        event = "customer.subscription.deleted" if ended else "customer.subscription.updated"
        return web.json_response(subscriptions.change(state, subscription, new, event=event))

    def _fields(self, subscription: Object, body: dict[str, Any]) -> Object:
        """Status with what belongs to it, `item` for the fields of the first item, and any field as it is."""
        state, status = self._state, body.get("status", subscription["status"])
        new: Object = {}
        if "pause_reason" in body or status == "paused":
            new = subscriptions.paused(state, body.pop("pause_reason", "pause_requested"))
        elif subscription["status"] == "paused" and status != "paused":
            new["status_details"] = None
        if status == "canceled":
            new |= {"ended_at": state.now(), "canceled_at": state.now()}
        item = body.pop("item", None)
        if item is not None:
            items = subscription["items"]
            new["items"] = items | {"data": [items["data"][0] | item, *items["data"][1:]]}
        return new | body

    async def renew(self, request: web.Request) -> web.Response:
        subscription = self._state.get("subscription", request.match_info["id"])
        subscriptions.renew(self._state, subscription, (await body_of(request)).get("outcome", "paid"))
        return web.json_response(subscription)

    async def pay_invoice(self, request: web.Request) -> web.Response:
        invoice = self._state.get("invoice", request.match_info["id"])
        invoices.pay(self._state, invoice)
        return web.json_response(invoice)

    async def fail_invoice(self, request: web.Request) -> web.Response:
        invoice = self._state.get("invoice", request.match_info["id"])
        invoices.fail(self._state, invoice)
        return web.json_response(invoice)

    async def complete_checkout(self, request: web.Request) -> web.Response:
        status = (await body_of(request)).get("payment_status", "paid")
        return web.json_response(checkout.complete(self._state, request.match_info["id"], status))

    async def settle_checkout(self, request: web.Request) -> web.Response:
        succeeded = bool((await body_of(request)).get("succeeded", True))
        return web.json_response(checkout.settle(self._state, request.match_info["id"], succeeded))

    async def set_entitlements(self, request: web.Request) -> web.Response:
        keys, customer = (await body_of(request)).get("lookup_keys"), request.match_info["id"]
        self._state.customer(customer)
        if keys is None:
            self._state.entitled.pop(customer, None)
        else:
            self._state.entitled[customer] = list(keys)
        entitlements.refresh(self._state, customer)
        return web.json_response(OK)

    async def set_features(self, request: web.Request) -> web.Response:
        keys = (await body_of(request)).get("lookup_keys", [])
        self._state.features_of_product[request.match_info["id"]] = list(keys)
        for customer in list(self._state.objects.get("customer", {})):
            entitlements.refresh(self._state, customer)
        return web.json_response(OK)

    async def emit(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        item, event_type = body.get("object"), body.get("type")
        if not isinstance(item, dict) or not isinstance(event_type, str):
            raise ControlError('send {"type": "charge.dispute.created", "object": {...}}')
        if "id" in item and "object" in item:
            item = {"created": self._state.now(), **item}
            self._state.put(str(item["object"]), item)
        event = self._state.emit(event_type, item, body.get("previous_attributes"))
        return web.json_response({"id": event["id"]})

    async def deliver(self, request: web.Request) -> web.Response:
        state = self._state
        event = state.get("event", request.match_info["id"])
        treatment = filled(Treatment, await body_of(request))
        state.deliveries.add(event, lambda: state.versions.event(event), treatment)
        return web.json_response(OK)
