"""Stripe's public port: keys, scripted faults, idempotency and the Stripe-Version around every route."""

import asyncio
import copy
import hashlib
from urllib.parse import parse_qsl

from aiohttp import BasicAuth, web

from deploy.local.standins.resetting import reset
from deploy.local.standins.stripe import form, pages, routes
from deploy.local.standins.stripe.call_log import ApiCall, Fault
from deploy.local.standins.stripe.errors import StripeError
from deploy.local.standins.stripe.expanding import expanded
from deploy.local.standins.stripe.idempotency import First
from deploy.local.standins.stripe.request import Asked
from deploy.local.standins.stripe.state import Object, State
from deploy.local.standins.stripe.versions import rendered

_SECRET_HEADERS = frozenset({"authorization", "cookie"})


class ScriptedError(StripeError):
    """Carries the reply that a fault asks for out of the handler."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.status or 200, "An error scripted by the test.", **(fault.error or {}))
        self.fault = fault


class Api:
    def __init__(self, state: State) -> None:
        self._state = state

    async def handle(self, request: web.Request) -> web.StreamResponse:
        state = self._state
        headers = {name.lower(): v for name, v in request.headers.items() if name.lower() not in _SECRET_HEADERS}
        key = _key(request)
        key_hash = None if key is None else hashlib.sha256(key.encode()).hexdigest()[:16]
        call = state.log.begin(request.method, request.path, headers, key_hash)
        call.request_id = state.ids.new("req")
        call.idempotency_key = request.headers.get("Idempotency-Key")
        try:
            return await self._answer(request, call, key)
        finally:
            state.log.end(call)

    async def _answer(self, request: web.Request, call: ApiCall, key: str | None) -> web.StreamResponse:
        body = await request.text() if request.method == "POST" else ""
        try:
            call.params = form.decode(parse_qsl(body or request.query_string, keep_blank_values=True))
            self._check_key(key)
            status, result = await self._result(request, call)
        except ScriptedError as scripted:
            return self._scripted(call, scripted)
        except StripeError as error:
            return self._reply(call, error.status, error.body(call.request_id))
        return self._reply(call, status, result)

    async def _result(self, request: web.Request, call: ApiCall) -> tuple[int, Object]:
        """The reply to a request that is carried out at most once per idempotency key, with its scripted fault."""
        state = self._state
        call.fault, fault = state.faults.take(call) or (None, Fault())
        with state.idempotency.once(call) as first:
            await state.gates.arrive(call)
            if fault.when == "before":
                await self._strike(request, fault, first)
            if first.status is None:
                # Rendered now: what changes before the reply leaves is not in it.
                first.finish(200, self._act(request, call))
        if fault.when == "after":
            await self._strike(request, fault, first)
        await asyncio.sleep(fault.latency_after_ms / 1000)
        if fault.gate_after is not None:
            await state.gates.stall(call, fault.gate_after, None)
        return first.status or 200, first.body

    def _act(self, request: web.Request, call: ApiCall) -> Object:
        state = self._state
        action, found = routes.find(call.method, call.path)
        call.object_id = found[0] if found else None
        base_url = f"{request.scheme}://{request.host}"
        item = action(state, Asked(call.params, call.path, call.request_id, base_url), *found)
        call.object_id = call.object_id or item.get("id")
        version = state.versions.of_request(request.headers.get("Stripe-Version"))
        shaped: Object = rendered(expanded(state, copy.deepcopy(item), call.params), version)
        return shaped

    async def _strike(self, request: web.Request, fault: Fault, first: First) -> None:
        await asyncio.sleep(fault.latency_ms / 1000)
        if fault.drop and request.transport is not None:
            reset(request.transport)
            await asyncio.Event().wait()
        if fault.status is not None or fault.body is not None:
            error = ScriptedError(fault)
            if fault.remembered:
                first.finish(error.status, error.body(first.request_id))
            raise error

    def _check_key(self, key: str | None) -> None:
        if key is None:
            raise StripeError(401, "You did not provide an API key.")
        if self._state.keys is not None and key not in self._state.keys:
            raise StripeError(401, "Invalid API Key provided.")

    def _reply(self, call: ApiCall, status: int, body: Object) -> web.Response:
        call.status = status
        return web.json_response(body, status=status, headers=self._headers(call))

    def _scripted(self, call: ApiCall, error: ScriptedError) -> web.Response:
        fault, call.status = error.fault, error.status
        headers = self._headers(call) | fault.headers
        if fault.body is not None:
            return web.Response(status=error.status, text=fault.body, headers=headers)
        return web.json_response(error.body(call.request_id), status=error.status, headers=headers)

    def _headers(self, call: ApiCall) -> dict[str, str]:
        headers = {"Request-Id": call.request_id}
        version = self._state.versions.of_request(call.headers.get("stripe-version"))
        headers["Stripe-Version"] = version
        if call.idempotency_key:
            headers["Idempotency-Key"] = call.idempotency_key
        if call.replayed:
            headers["Idempotent-Replayed"] = "true"
        return headers


def _key(request: web.Request) -> str | None:
    """The API key, as bearer token or as the user of basic authentication."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if scheme.lower() == "basic":
        try:
            return BasicAuth.decode(f"Basic {value}").login or None
        except ValueError:
            return None
    return None


def stripe_app(state: State) -> web.Application:
    async def close(_: web.Application) -> None:
        await state.deliveries.close()

    app = web.Application(client_max_size=1024 * 1024)
    pages.add(app, state)
    app.router.add_route("*", "/{path:.*}", Api(state).handle)
    app.on_cleanup.append(close)
    return app
