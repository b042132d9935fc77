"""The only place that imports httpx: its requests and responses on the aiohttp transport, with a bound on every wait
and size."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Literal

import aiohttp
import httpx
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from httpx_aiohttp import AiohttpTransport
from pydantic import BaseModel, ValidationError

from shared import tracing
from shared.contracts.message import Contract
from shared.errors import ParleyError, Transient
from shared.resource import Resource

CallFailure = Literal["connect", "timeout", "lost", "protocol", "too_large"]

_INTERNAL_BODY_BYTES_MAX: Final = 64 * 2**20
_URLS_KEPT_MAX: Final = 256
_PEER_IDLE_SECONDS: Final = 4.0
"""A service that drains closes what was idle throughout its DRAIN_DELAY_SECONDS: until then we have let go of it."""


class CallFailed(Transient):
    """No whole answer came. `maybe_sent` tells whether the peer may have acted on the request."""

    def __init__(self, kind: CallFailure, *, maybe_sent: bool) -> None:
        super().__init__(f"the call failed: {kind}")
        self.kind: CallFailure = kind
        self.maybe_sent = maybe_sent


class PeerRefused(ParleyError):
    """A service of ours answered with a problem: its status, its code, and its sentence for whoever called."""

    def __init__(self, peer: str, status: int, code: str, detail: str = "") -> None:
        super().__init__(f"{peer} answered {status} {code}")
        self.status = status
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Timeouts:
    """Seconds: to connect (a free connection included), and between two reads; None where the whole call is bounded."""

    connect_seconds: float = 5.0
    read_seconds: float | None = 30.0

    def for_httpx(self) -> dict[str, float | None]:
        return {"connect": self.connect_seconds, "read": self.read_seconds, "pool": self.connect_seconds}


@dataclass(frozen=True)
class Response:
    """A whole answer. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class StreamedResponse:
    """An answer whose body is read while it arrives."""

    def __init__(self, response: httpx.Response, *, read_seconds: float | None, body_bytes_max: int) -> None:
        self.status = response.status_code
        if self.status == HTTPStatus.OK:
            # It fits any bytes. To find out which encoding does, httpx would decode every header.
            response.headers.encoding = "iso-8859-1"
        self.headers: Mapping[str, str] = response.headers
        # The transport's stream: around it httpx counts and cuts chunks anew.
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._body = response.stream
        self._read_seconds = read_seconds
        self._body_bytes_max = body_bytes_max

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives; raises CallFailed when it stalls, is cut, or grows over the limit."""
        # We ask for none. Decoding has no bound of its own: a few hundred bytes may stand for hundreds of megabytes.
        if self.headers.get("content-encoding", "").lower() not in ("", "identity"):
            raise CallFailed("protocol", maybe_sent=True)
        received_bytes = 0
        arriving = aiter(self._body)
        with _failures_named():
            while (chunk := await self._next(arriving)) is not None:
                received_bytes += len(chunk)
                if received_bytes > self._body_bytes_max:
                    raise CallFailed("too_large", maybe_sent=True)
                yield chunk

    async def _next(self, arriving: AsyncIterator[bytes]) -> bytes | None:
        if self._read_seconds is None:
            return await anext(arriving, None)
        # The transport's own read timeout does not fire once broken chunked framing has stopped its parser.
        async with asyncio.timeout(self._read_seconds):
            return await anext(arriving, None)

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self.chunks()])


class _Connector(aiohttp.TCPConnector):
    """Lets go of a pooled connection on which something has come that nobody asked for: it would be taken for the next
    call's answer."""

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while (connection := await super()._get(key, traces)) is not None:
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        return None


class HttpClient(Resource):
    """One pool of connections for a process. No cookies, no redirects, no retries, no compressed answers.

    Requests go to the transport itself: all that httpx's client does around it would be switched off here, and is a
    quarter of what a call costs.
    """

    def __init__(self, *, connections_max: int = 1000, idle_seconds: float = _PEER_IDLE_SECONDS) -> None:
        self._connections_max = connections_max
        self._idle_seconds = idle_seconds
        self._transport: AiohttpTransport | None = None

    async def start(self) -> None:
        # By itself the session would send one account's cookies with the next one's call.
        session = aiohttp.ClientSession(
            connector=_Connector(limit=self._connections_max, keepalive_timeout=self._idle_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "parley", "Accept-Encoding": "identity"},
        )
        # Or it would send a GET a second time where the connection broke; aiohttp has no public option for it.
        session._retry_connection = False
        # The session has its own TLS settings; the transport's are for a session that it makes itself. By default it
        # would read the certificates of every authority once more, which takes some 25 ms.
        self._transport = AiohttpTransport(client=session, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    async def stop(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeouts: Timeouts | None = None,
        total_seconds: float,
        body_bytes_max: int = _INTERNAL_BODY_BYTES_MAX,
    ) -> Response:
        """The whole answer within `total_seconds`, or CallFailed."""
        try:
            async with (
                asyncio.timeout(total_seconds),
                self.stream(
                    method,
                    url,
                    headers=headers,
                    content=content,
                    timeouts=timeouts or Timeouts(read_seconds=None),
                    body_bytes_max=body_bytes_max,
                ) as streamed,
            ):
                return Response(streamed.status, streamed.headers, await streamed.read())
        except TimeoutError:
            raise CallFailed("timeout", maybe_sent=True) from None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeouts: Timeouts,
        body_bytes_max: int,
    ) -> AsyncIterator[StreamedResponse]:
        """An answer once its headers are here; leaving the block ends the connection if the body is not read."""
        assert self._transport is not None, "the HTTP client has not been started"
        request = httpx.Request(
            method,
            _parsed(url),
            headers=tracing.outgoing(headers),
            # As `content` it would be given headers, which aiohttp writes all the same.
            stream=httpx.ByteStream(content or b""),
            extensions={"timeout": timeouts.for_httpx()},
        )
        request.read()  # what is not read yet the transport would send in chunks
        with _failures_named():
            response = await self._transport.handle_async_request(request)
        try:
            yield StreamedResponse(response, read_seconds=timeouts.read_seconds, body_bytes_max=body_bytes_max)
        finally:
            await response.aclose()


@lru_cache(_URLS_KEPT_MAX)
def _parsed(url: str) -> httpx.URL:
    """Most calls go to one of a few addresses, and parsing one is a third of what httpx does for a call."""
    return httpx.URL(url)


@contextmanager
def _failures_named() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise _classify(error.__cause__ or error) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _classify(error) from error


def _classify(cause: BaseException) -> CallFailed:
    """By the transport's own error: httpx's classes name a lost answer and a refused connection alike."""
    if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return CallFailed("connect", maybe_sent=False)
    if isinstance(cause, TimeoutError | httpx.TimeoutException):
        return CallFailed("timeout", maybe_sent=True)
    if isinstance(cause, aiohttp.ClientResponseError | ValueError):
        return CallFailed("protocol", maybe_sent=True)
    return CallFailed("lost", maybe_sent=True)


class _ProblemBody(Contract):
    code: str = "unknown"
    detail: str = ""


class InternalApi:
    """Calls to one peer service, with the service token and the account that what is asked belongs to."""

    def __init__(
        self, client: HttpClient, base_url: str, service_token: str, *, peer: str, total_seconds: float = 5.0
    ) -> None:
        self._client = client
        self._base_url = base_url
        self._authorization = f"Bearer {service_token}"
        self._peer = peer
        self._total_seconds = total_seconds

    async def get(
        self, path: str, *, account_id: str | None = None, params: Mapping[str, str | int] | None = None
    ) -> bytes:
        """The body of a 2xx answer."""
        query = f"?{httpx.QueryParams(dict(params))}" if params else ""
        return await self._call("GET", path + query, account_id, None)

    async def post(self, path: str, body: BaseModel, *, account_id: str | None = None) -> bytes:
        """The body of a 2xx answer."""
        return await self._call("POST", path, account_id, body.model_dump_json().encode())

    async def _call(self, method: str, path: str, account_id: str | None, content: bytes | None) -> bytes:
        headers = {"authorization": self._authorization}
        if account_id is not None:
            headers["parley-account"] = account_id
        if content is not None:
            headers["content-type"] = "application/json"
        with tracing.calling(method, self._peer) as step:
            response = await self._client.request(
                method, self._base_url + path, headers=headers, content=content, total_seconds=self._total_seconds
            )
            step.set({"http.response.status_code": response.status})
        if response.status < 300:
            return response.body
        if response.status >= 500:
            raise CallFailed("protocol", maybe_sent=True)
        problem = _problem_of(response.body)
        raise PeerRefused(self._peer, response.status, problem.code, problem.detail)


def _problem_of(body: bytes) -> _ProblemBody:
    try:
        return _ProblemBody.model_validate_json(body)
    except ValidationError:
        return _ProblemBody()
