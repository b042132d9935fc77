"""The provider's public routes: POST /v1/chat/completions and GET /v1/models."""

import asyncio
import json
import math
import time
from email.utils import formatdate
from typing import Any

from aiohttp import web

from deploy.local.standins.llm.answer import answer_to, prompt_tokens, tokens_max
from deploy.local.standins.llm.behaviour import Behaviour
from deploy.local.standins.llm.call import Call, hash_of_key, safe_headers
from deploy.local.standins.llm.plan import json_steps, stream_steps
from deploy.local.standins.llm.sending import break_connection, send
from deploy.local.standins.llm.state import State
from deploy.local.standins.llm.wire import Frames, completion, completion_id, error_body

_STREAM_TYPE = "text/event-stream; charset=utf-8"
_BODY_BYTES_MAX = 32 * 1024 * 1024
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"
_MODELS_CREATED = 1_700_000_000


class RequestError(Exception):
    """The request is wrong in itself; answered as OpenAI does."""

    def __init__(self, status: int, **fields: Any) -> None:
        super().__init__(fields.get("message"))
        self.status, self.fields = status, fields


class Provider:
    def __init__(self, state: State) -> None:
        self._state = state

    async def models(self, request: web.Request) -> web.StreamResponse:
        try:
            self._check_key(request)
        except RequestError as refused:
            return web.Response(
                status=refused.status, body=error_body(refused.status, refused.fields), content_type="application/json"
            )
        listed = [
            {"id": name, "object": "model", "created": _MODELS_CREATED, "owned_by": "standin"}
            for name in self._state.models
        ]
        return web.json_response({"object": "list", "data": listed})

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        log = self._state.log
        call = log.begin(safe_headers(request.headers), hash_of_key(request.headers.get("Authorization")))
        outcome = "client_gone"
        try:
            response = await self._answer(request, call)
            outcome = "completed" if response.status < 400 else "error"
        except ConnectionError:
            raise asyncio.CancelledError from None
        finally:
            # A cancelled handler is a client that left, unless it was this side that broke the connection.
            log.end(call, "broken" if call.outcome == "broken" else outcome, time.monotonic())
        return response

    async def _answer(self, request: web.Request, call: Call) -> web.StreamResponse:
        state = self._state
        try:
            await self._read(request, call)
            state.log.known(call)
            self._check_key(request)
            self._check_body(call.body)
        except RequestError as refused:
            return self._error(call, refused.status, {}, error_body(refused.status, refused.fields))
        behaviour = state.script.behaviour_for(call)
        call.behaviour = behaviour.kind
        await state.gates.arrive(call)
        if behaviour.first_byte_ms:
            await asyncio.sleep(behaviour.first_byte_ms / 1000)
        wait = state.limits.take(prompt_tokens(call.body) + (tokens_max(call.body) or 0))
        return self._limited(call, wait) if wait else await self._behave(request, call, behaviour)

    async def _behave(self, request: web.Request, call: Call, behaviour: Behaviour) -> web.StreamResponse:
        if behaviour.kind == "drop":
            call.outcome = "broken"
            await break_connection(request, behaviour.cut_how)
        if behaviour.kind in ("status", "redirect") or behaviour.http_status >= 400:
            return self._scripted_error(call, behaviour)
        headers = self._headers(call, "application/json") | behaviour.headers
        if behaviour.kind == "wrong_type":
            call.status, call.first_byte_at = 200, time.monotonic()
            return web.Response(body=_HTML, headers=headers | {"Content-Type": "text/html"} | behaviour.headers)
        answer = answer_to(call, behaviour, self._state.seed)
        identity, model = completion_id(self._state.seed, call.number), call.body["model"]
        if not call.body.get("stream"):
            return await send(
                request, call, json_steps(completion(identity, model, answer), behaviour), headers, self._state.gates
            )
        options = call.body.get("stream_options") or {}
        frames = Frames(identity, model, bool(options.get("include_usage"))).of(answer)
        headers = headers | {"Content-Type": _STREAM_TYPE, "Cache-Control": "no-cache"} | behaviour.headers
        return await send(request, call, stream_steps(frames, behaviour), headers, self._state.gates)

    async def _read(self, request: web.Request, call: Call) -> None:
        try:
            raw = await request.read()
            body = json.loads(raw)
        except web.HTTPRequestEntityTooLarge:
            raise RequestError(413) from None
        except ValueError:
            raise RequestError(400, message="We could not parse the JSON body of your request.") from None
        if not isinstance(body, dict):
            raise RequestError(400, message="The body must be a JSON object.")
        call.read(body, raw)

    def _check_key(self, request: web.Request) -> None:
        authorization = request.headers.get("Authorization")
        if hash_of_key(authorization) is None:
            raise RequestError(401, message="You didn't provide an API key.", code=None)
        key = (authorization or "").partition(" ")[2].strip()
        if self._state.keys is not None and key not in self._state.keys:
            raise RequestError(401)

    def _check_body(self, body: dict[str, Any]) -> None:
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise RequestError(400, message="you must provide a model parameter", param="model")
        if not isinstance(body.get("messages"), list) or not body["messages"]:
            raise RequestError(400, message="'messages' must be a list with at least one message.", param="messages")
        if body.get("n", 1) != 1:
            raise RequestError(400, message="Only n = 1 is supported.", param="n")
        if self._state.models_checked and body["model"] not in self._state.models:
            raise RequestError(404, param="model")

    def _headers(self, call: Call, content_type: str) -> dict[str, str]:
        identity = f"req_{self._state.seed:x}standin{call.number:012d}"
        return {
            "Content-Type": content_type,
            "x-request-id": identity,
            "openai-processing-ms": str(int((time.monotonic() - call.arrived_at) * 1000)),
            "openai-version": "2020-10-01",
        } | self._state.limits.headers()

    def _error(self, call: Call, status: int, headers: dict[str, str], body: bytes) -> web.Response:
        call.status, call.first_byte_at = status, time.monotonic()
        return web.Response(status=status, headers=self._headers(call, "application/json") | headers, body=body)

    def _limited(self, call: Call, wait_seconds: float) -> web.Response:
        headers = {"Retry-After": str(math.ceil(wait_seconds)), "retry-after-ms": str(math.ceil(wait_seconds * 1000))}
        return self._error(call, 429, headers, error_body(429))

    def _scripted_error(self, call: Call, behaviour: Behaviour) -> web.Response:
        headers = _retry_headers(behaviour)
        if behaviour.kind == "redirect":
            headers["Location"] = behaviour.location
        status = behaviour.http_status
        body = error_body(status, behaviour.error) if behaviour.body is None else behaviour.body.encode()
        return self._error(call, status, headers | behaviour.headers, body)


def _retry_headers(behaviour: Behaviour) -> dict[str, str]:
    # A skewed Date moves the HTTP-date of Retry-After along: the wait it means stays the same.
    now = time.time() + behaviour.date_skew_seconds
    headers = {"Date": formatdate(now, usegmt=True)}
    if behaviour.retry_after_seconds is not None:
        headers["Retry-After"] = f"{behaviour.retry_after_seconds:g}"
    if behaviour.retry_after_date_seconds is not None:
        headers["Retry-After"] = formatdate(now + behaviour.retry_after_date_seconds, usegmt=True)
    return headers


def provider_app(state: State) -> web.Application:
    provider = Provider(state)
    app = web.Application(client_max_size=_BODY_BYTES_MAX)
    app.router.add_post("/v1/chat/completions", provider.chat_completions)
    app.router.add_get("/v1/models", provider.models)
    return app
