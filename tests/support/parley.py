"""A frontend as a test drives it: the public API over HTTP, and a reader that assembles the text from deltas alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.support.guard import GUARD_SECONDS

TERMINAL = frozenset({"completed", "incomplete", "failed", "cancelled", "refused"})


@dataclass(frozen=True)
class Answer:
    """Status, headers and the parsed body of one call."""

    status: int
    headers: Mapping[str, str]
    body: Any


class Parley:
    """One account's view of the gateway."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str, key: str) -> None:
        self._http = http
        self._base_url = base_url
        self._key = key

    async def call(
        self, method: str, path: str, *, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        async with self._http.request(
            method,
            self._base_url + path,
            json=body,
            headers={"authorization": f"Bearer {self._key}", **(headers or {})},
        ) as response:
            parsed = await response.json(content_type=None) if response.status != 304 else None
            return Answer(response.status, response.headers, parsed)

    async def ask(self, method: str, path: str, *, body: object = None) -> Any:
        """The body of a call that must succeed."""
        answer = await self.call(method, path, body=body)
        assert answer.status < 300, (method, path, answer.status, answer.body)
        return answer.body

    async def session(self, **fields: object) -> str:
        session_id: str = (await self.ask("POST", "/v1/sessions", body=fields))["id"]
        return session_id

    async def post(self, session_id: str, text: str, **fields: object) -> str:
        """The id of a request that was accepted."""
        accepted = await self.ask("POST", f"/v1/sessions/{session_id}/requests", body={"input": text, **fields})
        request_id: str = accepted["id"]
        return request_id

    async def get(self, request_id: str) -> Any:
        return await self.ask("GET", f"/v1/requests/{request_id}")

    async def wait_ended(self, request_id: str, *, seconds: float = GUARD_SECONDS) -> Any:
        """The snapshot once the request has ended, by long polls."""
        async with asyncio.timeout(seconds):
            while True:
                answer = await self.call("GET", f"/v1/requests/{request_id}", headers={"prefer": "wait=20"})
                assert answer.status == 200, answer
                if answer.body["status"] in TERMINAL:
                    return answer.body

    async def wait_charged(self, request_id: str, *, seconds: float = GUARD_SECONDS) -> Any:
        """The snapshot once billing has settled; the charge is asked for on reads, so this reads."""
        async with asyncio.timeout(seconds):
            while (snapshot := await self.get(request_id))["charge"] is None:
                await asyncio.sleep(0.2)
            return snapshot

    async def timeline(self, request_id: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = (await self.ask("GET", f"/v1/requests/{request_id}/timeline"))["entries"]
        return entries

    async def read_log(self, request_id: str, *, seconds: float = GUARD_SECONDS) -> LogReader:
        """Follow the event log with long polls until it is closed."""
        reader = LogReader()
        async with asyncio.timeout(seconds):
            while not reader.closed:
                reader.take(await self.ask("GET", f"/v1/requests/{request_id}/events?after={reader.cursor}&wait=20"))
        return reader


class LogReader:
    """Assembles the text from deltas and supersessions, and insists that every cursor is new and greater."""

    def __init__(self) -> None:
        self.cursor: Any = 0
        self.text = ""
        self.types: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.closed = False
        self._seen: set[Any] = set()

    def take(self, page: Mapping[str, Any]) -> None:
        for event in page["events"]:
            assert event["cursor"] not in self._seen, "an event was seen twice"
            self._seen.add(event["cursor"])
            self.events.append(event)
            self.types.append(event["type"])
            if event["type"] == "output.delta":
                self.text += event["data"]["text"]
            elif event["type"] == "output.superseded":
                self.text = ""
        self.cursor = page["next"]
        self.closed = page["closed"]


@asynccontextmanager
async def http_session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.5 * GUARD_SECONDS)) as session:
        yield session
