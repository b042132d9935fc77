"""A good client: it tries again under the same key, resumes from its cursor, and remembers all that it was shown."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deploy.local.seed import Account
from tests.support.parley import TERMINAL

TRY_SECONDS = 12.0
POLL_SECONDS = 5
GIVE_UP_SECONDS = 300.0
PAUSE_SECONDS_MAX = 3.0
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class GaveUp(Exception):
    """No usable answer for longer than any fault lasts."""


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    tries: int
    replayed: bool


@dataclass(frozen=True)
class Event:
    cursor: int
    type: str
    text: str | None


@dataclass
class Seen:
    """What one client was shown of one request, in order."""

    request_id: str
    reader: str
    snapshots: list[tuple[str, str | None]] = field(default_factory=list)
    """Status and output text."""
    events: list[Event] = field(default_factory=list)
    closed: bool = False

    @property
    def cursor(self) -> int:
        return self.events[-1].cursor if self.events else 0

    def take_snapshot(self, body: Mapping[str, Any]) -> bool:
        """Whether the request has ended."""
        output = body["output"]
        self.snapshots.append((body["status"], output["text"] if output else None))
        return body["status"] in TERMINAL

    def take_event(self, body: Mapping[str, Any]) -> None:
        self.events.append(Event(body["cursor"], body["type"], body["data"].get("text")))

    def take_page(self, page: Mapping[str, Any]) -> None:
        for event in page["events"]:
            self.take_event(event)
        self.closed = page["closed"]


@dataclass
class Trouble:
    """How often clients met a fault."""

    lost_connections: int = 0
    server_errors: int = 0
    dropped_by_us: int = 0


class Client:
    """One account's client. It uses all gateways in turn, as behind a load balancer."""

    def __init__(
        self, http: aiohttp.ClientSession, gateways: Sequence[str], account: Account, rng: random.Random
    ) -> None:
        self._http = http
        self._gateways = itertools.cycle(rng.sample(list(gateways), len(gateways)))
        self._rng = rng
        self.account = account
        self.trouble = Trouble()

    async def call(
        self, method: str, path: str, *, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """The first answer that is neither a lost connection nor the server's own trouble."""
        text = None if body is None else json.dumps(body)
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                for number in itertools.count(1):
                    reply = await self._try(method, path, text, headers or {}, number)
                    if reply is not None:
                        return reply
                    await self._pause(number)
        except TimeoutError:
            raise GaveUp(f"{method} {path}: no answer for {GIVE_UP_SECONDS:g} s") from None
        raise AssertionError("unreachable")

    async def post(self, path: str, body: object, key: str) -> Reply:
        return await self.call("POST", path, body=body, headers={"idempotency-key": key})

    async def watch_snapshot(self, seen: Seen) -> None:
        """Long polls until the request has ended."""
        while True:
            reply = await self.call(
                "GET", f"/v1/requests/{seen.request_id}", headers={"prefer": f"wait={POLL_SECONDS}"}
            )
            if seen.take_snapshot(_good(reply)):
                return

    async def follow_log(self, seen: Seen, *, drop: float = 0.0) -> None:
        """Long polls of the log until it is closed; with `drop` it leaves so often in the middle of one."""
        while not seen.closed:
            path = f"/v1/requests/{seen.request_id}/events?after={seen.cursor}&wait={POLL_SECONDS}"
            if self._rng.random() < drop:
                await self._leave_early(path)
            seen.take_page(_good(await self.call("GET", path)))

    async def stream_log(self, seen: Seen, *, drop: float = 0.0) -> None:
        """The same as an event stream, resumed by Last-Event-ID."""
        while not seen.closed:
            try:
                async for event in self._stream(seen):
                    seen.take_event(event)
                    seen.closed = event["type"].startswith("request.")
                    if not seen.closed and self._rng.random() < drop:
                        self.trouble.dropped_by_us += 1
                        break
            except (aiohttp.ClientError, OSError, TimeoutError):
                self.trouble.lost_connections += 1
                await self._pause(1)

    async def _stream(self, seen: Seen) -> AsyncIterator[dict[str, Any]]:
        headers = self._headers() | {"accept": "text/event-stream", "last-event-id": str(seen.cursor)}
        url = f"{next(self._gateways)}/v1/requests/{seen.request_id}/events"
        async with self._http.get(url, headers=headers, timeout=_stream_timeout()) as response:
            if response.status == 204:
                seen.closed = True
            elif response.status != 200:
                self.trouble.server_errors += 1
                await self._pause(2)
            else:
                event_type = ""
                async for line in response.content:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name == "event":
                        event_type = value
                    elif name == "data" and event_type != "reconnect":
                        yield json.loads(value)

    async def _leave_early(self, path: str) -> None:
        """The connection is closed while the server still waits."""
        self.trouble.dropped_by_us += 1
        try:
            async with asyncio.timeout(self._rng.uniform(0.005, 0.1)):
                await self._try("GET", path, None, {}, 1)
        except TimeoutError:
            return

    async def _try(
        self, method: str, path: str, text: str | None, headers: Mapping[str, str], number: int
    ) -> Reply | None:
        try:
            async with self._http.request(
                method,
                next(self._gateways) + path,
                data=text,
                headers=self._headers() | {"content-type": "application/json"} | dict(headers),
                timeout=aiohttp.ClientTimeout(total=TRY_SECONDS),
            ) as response:
                body = await response.json(content_type=None) if response.status != 304 else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            self.trouble.lost_connections += 1
            return None
        if response.status in _AGAIN:
            self.trouble.server_errors += response.status != 429
            return None
        return Reply(response.status, body, number, "Idempotent-Replayed" in response.headers)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.account.key}"}

    async def _pause(self, number: int) -> None:
        await asyncio.sleep(min(PAUSE_SECONDS_MAX, 0.1 * 2**number) * self._rng.uniform(0.5, 1))


def _good(reply: Reply) -> Any:
    if reply.status != 200:
        raise AssertionError(f"expected 200, got {reply.status}: {reply.body}")
    return reply.body


def _stream_timeout() -> aiohttp.ClientTimeout:
    """The server says something at least every ten seconds."""
    return aiohttp.ClientTimeout(total=None, sock_connect=2, sock_read=TRY_SECONDS)
