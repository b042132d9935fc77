"""The control ports of the stand-ins, as tests use them."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.support.guard import GUARD_SECONDS

AWAIT_SECONDS_MAX = 30.0
LATE = 408


class Control:
    """One stand-in's control port."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url

    async def ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        status, answer = await self._call(method, path, body, **query)
        assert status < 300, (method, path, status, answer)
        return answer

    async def _call(self, method: str, path: str, body: object = None, **query: str) -> tuple[int, Any]:
        async with self._http.request(method, self._url + path, json=body, params=query) as response:
            return response.status, await response.json()


class LlmControl(Control):
    """The provider: what it is to do for a marker, and what it was asked."""

    async def script(self, marker: str, *steps: dict[str, Any]) -> None:
        """Calls whose last user text has `[[marker]]` follow these steps, one each; later ones answer plainly."""
        await self.ask("POST", "/rules", {"rules": [{"match": {"marker": marker}, "steps": list(steps)}]})

    async def calls(self, **query: str) -> list[dict[str, Any]]:
        """The log, oldest first; stamps are seconds of the machine's monotonic clock."""
        calls: list[dict[str, Any]] = (await self.ask("GET", "/calls", **query))["calls"]
        return calls

    async def wait(self, until: str, *, marker: str | None = None, seconds: float = GUARD_SECONDS) -> dict[str, Any]:
        """The counters once this holds of them. The stand-in waits for a minute at most, however long it is told to."""
        body = {"until": until, **({"marker": marker} if marker else {})}
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        while True:
            left = min(AWAIT_SECONDS_MAX, max(0.1, ends_at - loop.time()))
            status, answer = await self._call("POST", "/await", {**body, "timeout_seconds": left})
            if status != LATE or loop.time() >= ends_at:
                assert status < 300, (until, marker, seconds, status, answer)
                counters: dict[str, Any] = answer
                return counters

    async def close_gate(self, name: str, marker: str) -> None:
        """Calls of this marker wait at their arrival until the gate is opened."""
        await self.ask("PUT", f"/gates/{name}", {"match": {"marker": marker}})

    async def open_gate(self, name: str) -> None:
        await self.ask("DELETE", f"/gates/{name}")


class StripeControl(Control):
    """Stripe: its objects, and how its webhooks are delivered."""

    async def change_subscription(self, subscription_id: str, **fields: object) -> None:
        await self.ask("PUT", f"/subscriptions/{subscription_id}", fields)

    async def treat(self, object_id: str, *steps: dict[str, Any]) -> None:
        """The next deliveries about this object follow these treatments, one each."""
        await self.ask(
            "POST", "/delivery/rules", {"rules": [{"match": {"object_id": object_id}, "steps": list(steps)}]}
        )

    async def wait_delivered(self) -> None:
        await self.ask("POST", "/await", {"until": "pending == 0", "timeout_seconds": GUARD_SECONDS})
