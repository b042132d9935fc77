"""Stripe's control port.

GET    /health                          {"ok": true}
POST   /reset                           objects, events, rules, settings and logs as at the start
PUT    /subscriptions/{id}              {"status"?, "pause_reason"?, any field..., "item"?: {...}, "emit"?: false}
POST   /subscriptions/{id}/renew        {"outcome": "paid" | "failed"} begins the next period
POST   /invoices/{id}/pay  .../fail     an open invoice is paid, or a try fails
POST   /checkout/{id}/complete          {"payment_status"?: "paid" | "unpaid" | "no_payment_required"}
POST   /checkout/{id}/settle            {"succeeded": true} the end of a delayed payment
PUT    /customers/{id}/entitlements     {"lookup_keys": [...]} by hand; null follows the products again
PUT    /products/{id}/features          {"lookup_keys": [...]}
POST   /events                          {"type", "object": {...}} any event; an object with an id can be retrieved
POST   /events/{id}/deliver             a treatment; sends the event again
PUT    /versions                        {"api"?, "event_shape"?, "event_label"?}
PUT    /clock                           {"offset_seconds"}
PUT    /keys                            {"keys": [...] | null}
GET    /delivery   PUT /delivery        {"url"?, "secret"?, "attempts_max"?, "retry_ms"?, "timeout_seconds"?, ...}
POST   /delivery/rules  DELETE          {"rules": [{"match": {"type"?, "object_id"?, "customer"?}, "steps": [...]}]}
POST   /delivery/release                {"order"?: "first" | "last" | "shuffled", "seed"?, "count"?}
GET    /deliveries DELETE /deliveries   the attempts
POST   /faults     DELETE /faults       {"rules": [{"match": {"method"?, "path"?, "param"?}, "steps": [...]}]}
PUT    /gates/{name}  POST .../release  DELETE /gates/{name}   as in the LLM stand-in; match as in /faults
GET    /calls      DELETE /calls        ?method= path= object_id= after= limit=
GET    /counters                        calls, in_flight, held_calls, pending, delivered, failed, dropped, held, ...
POST   /await                           {"until": "pending == 0", "timeout_seconds"?} 200, or 408 when late
"""

from dataclasses import asdict
from typing import Any

from aiohttp import web

from deploy.local.standins.control import ControlError, body_of, control_app, filled, number_of, timeout_of
from deploy.local.standins.stripe.control_objects import OK, ObjectControl
from deploy.local.standins.stripe.errors import StripeError
from deploy.local.standins.stripe.state import State
from deploy.local.standins.stripe.treatment import Settings
from deploy.local.standins.stripe.versions import Versions
from deploy.local.standins.waiting import condition

_CALLS_LIMIT = 1_000


def _changed(kind: type[Any], now: Any, new: dict[str, Any]) -> Any:
    return filled(kind, asdict(now) | new)


class ProcessControl:
    """Settings, deliveries, faults, gates, logs and waiting."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response(OK)

    async def reset(self, _: web.Request) -> web.Response:
        self._state.reset()
        return web.json_response(OK)

    async def put_versions(self, request: web.Request) -> web.Response:
        self._state.versions = _changed(Versions, self._state.versions, await body_of(request))
        return web.json_response(asdict(self._state.versions))

    async def put_clock(self, request: web.Request) -> web.Response:
        self._state.clock_offset_seconds = int((await body_of(request)).get("offset_seconds", 0))
        return web.json_response({"now": self._state.now()})

    async def put_keys(self, request: web.Request) -> web.Response:
        keys = (await body_of(request)).get("keys")
        self._state.keys = None if keys is None else frozenset(keys)
        return web.json_response(OK)

    async def get_delivery(self, _: web.Request) -> web.Response:
        return web.json_response(asdict(self._state.deliveries.settings))

    async def put_delivery(self, request: web.Request) -> web.Response:
        deliveries = self._state.deliveries
        deliveries.settings = _changed(Settings, deliveries.settings, await body_of(request))
        return web.json_response(OK)

    async def add_delivery_rules(self, request: web.Request) -> web.Response:
        rules = (await body_of(request)).get("rules") or []
        return web.json_response({"rules": [self._state.deliveries.rules.add(rule) for rule in rules]})

    async def delete_delivery_rules(self, _: web.Request) -> web.Response:
        self._state.deliveries.rules.clear()
        return web.json_response(OK)

    async def release(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        order, seed, count = str(body.get("order", "first")), int(body.get("seed", 0)), body.get("count")
        return web.json_response({"released": self._state.deliveries.release(order, seed, count)})

    async def list_deliveries(self, _: web.Request) -> web.Response:
        return web.json_response({"deliveries": self._state.deliveries.log()})

    async def delete_deliveries(self, _: web.Request) -> web.Response:
        self._state.deliveries.clear_log()
        return web.json_response(OK)

    async def add_faults(self, request: web.Request) -> web.Response:
        rules = (await body_of(request)).get("rules") or []
        return web.json_response({"rules": [self._state.faults.add(rule) for rule in rules]})

    async def delete_faults(self, _: web.Request) -> web.Response:
        self._state.faults.clear()
        return web.json_response(OK)

    async def close_gate(self, request: web.Request) -> web.Response:
        self._state.gates.close(request.match_info["name"], (await body_of(request)).get("match"))
        return web.json_response(OK)

    async def release_gate(self, request: web.Request) -> web.Response:
        count = int((await body_of(request)).get("count", 1))
        return web.json_response({"released": self._state.gates.release(request.match_info["name"], count)})

    async def open_gate(self, request: web.Request) -> web.Response:
        return web.json_response({"released": self._state.gates.open(request.match_info["name"])})

    async def list_calls(self, request: web.Request) -> web.Response:
        limit, after = number_of(request.query.get("limit"), _CALLS_LIMIT), number_of(request.query.get("after"), 0)
        return web.json_response({"calls": self._state.log.select(request.query, after, limit)})

    async def delete_calls(self, _: web.Request) -> web.Response:
        self._state.log.clear()
        return web.json_response(OK)

    async def counters(self, _: web.Request) -> web.Response:
        return web.json_response(self._state.counters())

    async def wait(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        holds = condition(str(body.get("until")), self._state.counters)
        reached = await self._state.watch.until(holds, timeout_of(body))
        return web.json_response(self._state.counters(), status=200 if reached else 408)


@web.middleware
async def _stripe_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        response: web.StreamResponse = await handler(request)
    except StripeError as error:
        raise ControlError(error.message) from None
    return response


def control_routes(state: State) -> web.Application:
    app = control_app()
    app.middlewares.append(_stripe_errors)
    objects, process = ObjectControl(state), ProcessControl(state)
    app.add_routes(
        [
            web.put("/subscriptions/{id}", objects.change_subscription),
            web.post("/subscriptions/{id}/renew", objects.renew),
            web.post("/invoices/{id}/pay", objects.pay_invoice),
            web.post("/invoices/{id}/fail", objects.fail_invoice),
            web.post("/checkout/{id}/complete", objects.complete_checkout),
            web.post("/checkout/{id}/settle", objects.settle_checkout),
            web.put("/customers/{id}/entitlements", objects.set_entitlements),
            web.put("/products/{id}/features", objects.set_features),
            web.post("/events", objects.emit),
            web.post("/events/{id}/deliver", objects.deliver),
            web.get("/health", process.health),
            web.post("/reset", process.reset),
            web.put("/versions", process.put_versions),
            web.put("/clock", process.put_clock),
            web.put("/keys", process.put_keys),
            web.get("/delivery", process.get_delivery),
            web.put("/delivery", process.put_delivery),
            web.post("/delivery/rules", process.add_delivery_rules),
            web.delete("/delivery/rules", process.delete_delivery_rules),
            web.post("/delivery/release", process.release),
            web.get("/deliveries", process.list_deliveries),
            web.delete("/deliveries", process.delete_deliveries),
            web.post("/faults", process.add_faults),
            web.delete("/faults", process.delete_faults),
            web.put("/gates/{name}", process.close_gate),
            web.post("/gates/{name}/release", process.release_gate),
            web.delete("/gates/{name}", process.open_gate),
            web.get("/calls", process.list_calls),
            web.delete("/calls", process.delete_calls),
            web.get("/counters", process.counters),
            web.post("/await", process.wait),
        ]
    )
    return app
