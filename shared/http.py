"""The HTTP server kit: problem JSON for every error, bounded bodies, bounded time, and the operator's three routes."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.typedefs import Handler, Middleware
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shared import metrics, tracing
from shared.errors import ParleyError, Problem, Transient
from shared.ids import new_id
from shared.logs import bind, get_logger
from shared.resource import Patience, Resource

log = get_logger(__name__)

Model = TypeVar("Model", bound=BaseModel)
RouteHandler: TypeAlias = Handler

PROBLEM_CONTENT_TYPE: Final = "application/problem+json"
KEEP_ALIVE_SECONDS: Final = 620.0
"""Longer than balancers keep an idle connection, so that they close first and send no call into our close: nginx and
AWS keep one for 60 s, Google 600 s. Envoy's hour has to be set down."""
_LISTEN_BACKLOG: Final = 4096
_CUT_SECONDS: Final = 1.0
"""For a handler to notice that its call was cut."""
_ERRORS_SHOWN_MAX: Final = 20
_MESSAGES: Final = {
    "union_tag_invalid": "Input is of no documented type",
    "union_tag_not_found": "Input is of no documented type",
    "model_type": "Input should be a valid object",
    "model_attributes_type": "Input should be a valid object",
    "dict_type": "Input should be a valid object",
    "tuple_type": "Input should be a valid array",
}
_BAD_TEXT: Final = re.compile("[\x00\ud800-\udfff]")
_MAY_BE_BAD: Final = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")
"""Only as an escape can it be in JSON that is UTF-8."""
_TRACE_ID: Final = re.compile(r"[A-Za-z0-9._-]{8,64}")

_BODY_BYTES_MAX = web.AppKey("body_bytes_max", int)
_BODY_SECONDS_MAX = web.AppKey("body_seconds_max", float)


class _Traffic:
    """The calls handled or answered now, each within a `with`, and whether their connections may be used again."""

    def __init__(self) -> None:
        self.lame_duck = False
        self._calls = 0
        self._idle = asyncio.Event()

    def __enter__(self) -> None:
        self._calls += 1

    def __exit__(self, *_: object) -> None:
        self._calls -= 1
        if not self._calls:
            self._idle.set()

    async def until_idle(self) -> None:
        while self._calls:
            self._idle.clear()
            await self._idle.wait()


_TRAFFIC = web.AppKey("traffic", _Traffic)
_CALL_ID = web.RequestKey("call_id", str)

_requests = metrics.histogram("http_request_seconds", "Time to answer.", ("method", "route", "status"))


def make_app(
    *, middlewares: Iterable[Middleware] = (), body_bytes_max: int, body_seconds_max: float = 10.0
) -> web.Application:
    """An application whose every error is a problem, whose bodies are bounded in size and in the time they take."""
    app = web.Application(
        middlewares=[web.middleware(step) for step in (_observed, _problems, *middlewares)],
        client_max_size=body_bytes_max,
    )
    app[_BODY_BYTES_MAX] = body_bytes_max
    app[_BODY_SECONDS_MAX] = body_seconds_max
    app[_TRAFFIC] = _Traffic()
    app.on_response_prepare.append(_mark)
    return app


async def read_body(request: web.Request) -> bytes:
    """The body as it was sent; 413 where it is too large, 408 where it comes too slowly, 415 where it is encoded."""
    limit = request.app[_BODY_BYTES_MAX]
    too_large = Problem(413, "body_too_large", f"The body may have at most {limit} bytes.")
    if (request.content_length or 0) > limit:
        raise too_large
    if request.headers.get("content-encoding", "").lower() not in ("", "identity"):
        raise Problem(415, "unsupported_content_encoding", "Send the body as it is, without a Content-Encoding.")
    try:
        async with asyncio.timeout(request.app[_BODY_SECONDS_MAX]):
            return await request.read()
    except TimeoutError:
        raise Problem(408, "body_too_slow", "The body did not arrive in time.") from None
    except OSError:  # the client's network, not ours: nobody is left to read this, but it is counted
        raise Problem(400, "body_incomplete", "The connection was lost before the body had arrived.") from None
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None


async def read_model(request: web.Request, model: type[Model]) -> Model:
    """The body as `model`; 415, 400 or 422 with a list of `errors` where it is not one."""
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Problem(415, "unsupported_media_type", "Send the body as application/json.")
    return parse_model(await read_body(request), model)


def parse_model(body: bytes, model: type[Model]) -> Model:
    """`body` as `model`. Text that PostgreSQL could not store is refused here, at the edge."""
    try:
        document = json.loads(text := body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        what = "is not JSON in UTF-8" if body else "is empty; send at least {}"
        raise Problem(400, "invalid_json", f"The body {what}.") from None
    if _MAY_BE_BAD.search(text) and _has_bad_text(document):
        raise Problem(422, "invalid_text", "Text may not contain U+0000 or lone surrogates.")
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise Problem(
            422, "invalid_request", "The body is not as documented.", extra={"errors": describe_errors(error, document)}
        ) from None


def describe_errors(error: ValidationError, document: object) -> list[dict[str, str]]:
    """Where in `document` and what, never the value."""
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    # pydantic counts only valid items, so an array with a wrong one may be called too short as well.
    beside = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    return [
        {"path": _path_of(problem, document), "message": _message_of(problem)}
        for problem in problems
        if problem["type"] != "too_short" or problem["loc"] not in beside
    ][:_ERRORS_SHOWN_MAX]


def _path_of(problem: ErrorDetails, document: object) -> str:
    """The keys and indices that lead there. pydantic puts the names of union members, which are ours, between them."""
    path, value = [], document
    for part in problem["loc"]:
        if isinstance(value, dict) and (part in value or (problem["type"] == "missing" and part == problem["loc"][-1])):
            path.append(str(part))
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path.append(str(part))
            value = value[part] if part < len(value) else None
    return ".".join(path)


def _message_of(problem: ErrorDetails) -> str:
    # pydantic's own quote the value, or name what is ours and Python's.
    message = _MESSAGES.get(problem["type"], problem["msg"]).removeprefix("Value error, ")
    return message.replace("Tuple should", "Array should").replace("Dictionary should", "Object should")


def json_response(
    body: BaseModel | Mapping[str, Any] | list[Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """JSON with the given status. Answers are private to their caller and not stored by caches."""
    text = body.model_dump_json() if isinstance(body, BaseModel) else json.dumps(body, default=str)
    return web.Response(
        text=text,
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "private, no-store", **(headers or {})},
    )


def require_service_token(token: str, *, prefix: str = "/internal/") -> Middleware:
    """Let only our own services call the routes under `prefix`."""
    expected = f"Bearer {token}".encode()

    async def check(request: web.Request, handler: RouteHandler) -> web.StreamResponse:
        given = request.headers.get("authorization", "").encode(errors="replace")
        if request.path.startswith(prefix) and not hmac.compare_digest(given, expected):
            raise Problem(401, "unauthorized", "This route is for Parley's own services.")
        return await handler(request)

    return check


def problem_response(problem: Problem) -> web.Response:
    """RFC 9457 with the stable `code`."""
    body = {"type": "about:blank", "title": problem.code.replace("_", " "), "status": problem.status}
    body |= {"code": problem.code, "detail": problem.detail, **problem.extra}
    return web.Response(
        text=json.dumps(body, default=str),
        status=problem.status,
        content_type=PROBLEM_CONTENT_TYPE,
        headers={"Cache-Control": "no-store", **problem.headers},
    )


class _Connection(web.RequestHandler):
    """aiohttp's own answer to what is not HTTP quotes it: with a broken header, the key in it."""

    __slots__ = ("_traffic",)

    def __init__(self, manager: web.Server, traffic: _Traffic, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._traffic = traffic

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """The call is over when its reader has taken the answer."""
        if isinstance(resp, web.HTTPException):  # aiohttp judges an Expect before any middleware
            resp = problem_response(_from_aiohttp(resp))
        with self._traffic:
            return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status >= 500 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc)
        log.info("http.malformed", error=type(exc).__name__)
        problem = Problem(400, "malformed_http", "What was sent is not HTTP, or has too many headers.")
        if isinstance(exc, LineTooLong):
            problem = Problem(431, "header_too_long", f"A header or the URL has more than {exc.args[1]} bytes.")
        response = problem_response(problem)
        response.headers["Server"] = "parley"
        response.force_close()
        return response


class _Server(web.Server):
    traffic: _Traffic

    def __call__(self) -> web.RequestHandler:
        # An encoded body is refused where it is read: decoded here, a broken one would take the connection with it.
        return _Connection(self, self.traffic, loop=self._loop, auto_decompress=False, **self._kwargs)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        server = _Server(made.request_handler, request_factory=made.request_factory, loop=made._loop, **made._kwargs)
        server.traffic = self.app[_TRAFFIC]
        return server


class CannotListen(ParleyError):
    """The port is somebody else's, or not ours to use: set HTTP_PORT or OPS_PORT to another."""


class HttpServer(Resource):
    """Listens for an app of `make_app`. As a lame duck it closes each connection after its next answer; at the stop it
    takes no new connection and gives handlers `drain_seconds` to end. So a client that never sends on a connection that
    was idle for as long as we were a lame duck meets none that is closed.
    """

    def __init__(self, app: web.Application, *, host: str, port: int, drain_seconds: float) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._drain_seconds = drain_seconds
        self._patience = Patience()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        self._runner = _Runner(
            self._app, access_log=None, keepalive_timeout=KEEP_ALIVE_SECONDS, shutdown_timeout=_CUT_SECONDS
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port, backlog=_LISTEN_BACKLOG).start()
        except OSError as error:
            raise CannotListen(f"cannot listen on {self._host}:{self._port}: {error.strerror}") from error

    def enter_lame_duck(self) -> None:
        self._app[_TRAFFIC].lame_duck = True

    def hurry(self) -> None:
        self._patience.lose()

    async def stop(self) -> None:
        if self._runner is None:
            return
        for site in self._runner.sites:
            await site.stop()
        # The runner's own end comes after: from its beginning on it reads no more of the bodies that are on their way.
        await self._patience.wait(self._app[_TRAFFIC].until_idle(), self._drain_seconds)
        await self._runner.cleanup()


def ops_app(
    checks: Mapping[str, Callable[[], bool]], dependencies: Mapping[str, Callable[[], bool]]
) -> web.Application:
    """`/healthz`: the loop runs. `/readyz`: every check holds; dependencies are told beside them. `/metrics`: the text
    format."""

    async def healthz(_: web.Request) -> web.Response:
        return json_response({"status": "alive"})

    async def readyz(_: web.Request) -> web.Response:
        outcome = {name: check() for name, check in checks.items()}
        told = outcome | {name: is_there() for name, is_there in dependencies.items()}
        return json_response(told, status=200 if all(outcome.values()) else 503)

    async def show_metrics(_: web.Request) -> web.Response:
        body, content_type = metrics.exposition()
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = make_app(body_bytes_max=1024)
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show_metrics)])
    return app


async def _observed(request: web.Request, handler: RouteHandler) -> web.StreamResponse:
    """Name the call in logs and answers, and count it under its route's pattern, never its path."""
    given = request.headers.get("x-request-id", "")
    call_id = given if _TRACE_ID.fullmatch(given) else new_id("call")
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "unknown"
    loop = asyncio.get_running_loop()
    started = loop.time()
    traffic = request.app[_TRAFFIC]
    request[_CALL_ID] = call_id
    with bind(call_id=call_id), traffic, tracing.serving(request.method, route, request.headers) as step:
        response = await handler(request)
        tracing.answered(step, response.status)
    if traffic.lame_duck:
        response.force_close()
    _requests.labels(request.method, route, response.status).observe(loop.time() - started)
    return response


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    """Streams send their head long before they are over, so it is marked when it goes."""
    response.headers["X-Request-Id"] = request.get(_CALL_ID) or new_id("call")  # none where aiohttp refused the call
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Server"] = "parley"


async def _problems(request: web.Request, handler: RouteHandler) -> web.StreamResponse:
    """Render whatever a route raised. What nobody foresaw is a 500 that tells nothing but is logged."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem_response(problem)
    except web.HTTPException as error:
        return problem_response(_from_aiohttp(error))
    except Transient as error:
        log.warning("http.unavailable", route=request.path, error=str(error))
        return problem_response(
            Problem(503, "unavailable", "Try again shortly; nothing was changed twice.", headers={"Retry-After": "1"})
        )
    except Exception as error:
        log.error("http.failed", route=request.path, exc_info=error)
        return problem_response(Problem(500, "internal_error", "The error is ours and has been logged."))


def _from_aiohttp(error: web.HTTPException) -> Problem:
    allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    match error.status:
        case 404:
            return Problem(404, "route_not_found", "There is no such route.")
        case 405:
            return Problem(405, "method_not_allowed", "This route has no such method.", headers=allowed)
        case 417:
            return Problem(417, "expectation_failed", "The only Expect that is known here is 100-continue.")
        case _:
            return Problem(400, "http_error", error.reason)


def _has_bad_text(document: object) -> bool:
    """Whether any text in a parsed JSON document holds what PostgreSQL's text cannot."""
    pending = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if _BAD_TEXT.search(value):
                return True
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.keys())
            pending.extend(value.values())
    return False
