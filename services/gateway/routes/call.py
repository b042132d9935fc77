"""One call of the public API: who calls, the parsed body and query string, and the use cases it may reach."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from aiohttp import web
from pydantic import BaseModel, ValidationError

from services.gateway.admission import Admission
from services.gateway.api_keys import Scope
from services.gateway.authentication import Authenticator
from services.gateway.cancelling import Cancelling
from services.gateway.peers import Billing, Results
from services.gateway.problems import EVERYWHERE, WITH_BODY
from services.gateway.records import Caller
from services.gateway.request_reader import RequestReader
from services.gateway.schemas import Nothing
from services.gateway.sessions import Sessions
from services.gateway.store import AccountStore, RequestStore
from services.gateway.timeline import TimelineReader
from services.gateway.waiting import Hub
from shared.errors import Problem, not_found
from shared.http import describe_errors, read_model
from shared.ids import is_id

B = TypeVar("B", bound=BaseModel)
Q = TypeVar("Q", bound=BaseModel)

Header: TypeAlias = Literal["Idempotency-Key", "If-None-Match", "Prefer", "Last-Event-ID", "Accept"]


@dataclass(frozen=True)
class Services:
    """What the routes stand on."""

    authenticator: Authenticator
    accounts: AccountStore
    api_key_pepper: str
    sessions: Sessions
    admission: Admission
    requests: RequestStore
    reader: RequestReader
    cancelling: Cancelling
    timeline: TimelineReader
    billing: Billing
    results: Results
    log_hub: Hub


@dataclass(frozen=True)
class Call(Generic[B, Q]):
    """What a route's handler is given."""

    http: web.Request
    services: Services
    caller: Caller
    body: B
    raw_body: bytes
    query: Q

    @property
    def account_id(self) -> str:
        return self.caller.account_id

    def path_id(self, noun: Literal["session", "request", "account", "key"]) -> str:
        """The id in the path. What has not the form of an id is as unknown as one that was never given."""
        text = self.http.match_info[f"{noun}_id"]
        if not is_id(_PREFIX_BY_NOUN[noun], text):
            raise not_found(noun)
        return text

    def header(self, name: Header) -> list[str]:
        """Every value of a header, in the order in which they were sent."""
        return self.http.headers.getall(name, [])


_PREFIX_BY_NOUN = {"session": "ses", "request": "req", "account": "acct", "key": "key"}


@dataclass(frozen=True)
class Route(Generic[B, Q]):
    """One line of the route table: what is served, and what its documentation says."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    handler: Callable[[Call[B, Q]], Awaitable[web.StreamResponse]]
    summary: str
    response: Any
    """The model of the body of the usual answer; None where it has none."""
    body: type[B] = Nothing  # type: ignore[assignment]
    query: type[Q] = Nothing  # type: ignore[assignment]
    scope: Scope = "account"
    status: int = 200
    codes: tuple[str, ...] = ()
    """Problem codes beyond those that every route may answer."""
    headers: tuple[Header, ...] = ()
    """Request headers that mean something here."""
    events: bool = False
    """Whether it also answers as a stream of events."""

    @property
    def reads_body(self) -> bool:
        return self.body is not Nothing

    @property
    def all_codes(self) -> tuple[str, ...]:
        query = ("invalid_parameter",)
        return (*EVERYWHERE, *(WITH_BODY if self.reads_body else ()), *query, *self.codes)

    async def __call__(self, services: Services, request: web.Request) -> web.StreamResponse:
        """Authenticate, parse, handle."""
        caller = await services.authenticator.authenticate(request.headers.getall("Authorization", []), self.scope)
        query = parse_query(request, self.query)
        body = await read_model(request, self.body) if self.reads_body else self.body()
        # What the fingerprint is made of: the body as it was sent, which the request has kept.
        raw_body = await request.read() if self.reads_body else b""
        return await self.handler(Call(request, services, caller, body, raw_body, query))


def parse_query(request: web.Request, model: type[Q]) -> Q:
    """The query string as `model`; each parameter at most once."""
    if len(request.query) > len(set(request.query)):
        raise Problem(422, "invalid_parameter", "A parameter is in the query string twice.")
    parameters = dict(request.query)
    try:
        return model.model_validate_strings(parameters)
    except ValidationError as error:
        errors = describe_errors(error, parameters)
        raise Problem(
            422, "invalid_parameter", "The query string is not as documented.", extra={"errors": errors}
        ) from None
