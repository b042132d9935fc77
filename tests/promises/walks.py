"""One account's life in which every message of the house is said at least once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp

from tests.support.guard import GUARD_SECONDS
from tests.support.parley import Parley
from tests.support.stack import Account, Stack, subscribed_account
from tests.support.standins import LlmControl, StripeControl


@dataclass
class Walk:
    """Who walked, and its requests by what became of them."""

    account: Account
    parley: Parley
    requests: dict[str, str] = field(default_factory=dict)

    async def charged(self) -> None:
        """Each charge was read once: the gateway asks billing for it then, and keeps it."""
        await asyncio.gather(*(self.parley.wait_charged(request_id) for request_id in self.requests.values()))


async def walk_through(stack: Stack, http: aiohttp.ClientSession, llm: LlmControl, stripe: StripeControl) -> Walk:
    account = await asyncio.to_thread(subscribed_account, stack, "walker")
    walk = Walk(account, Parley(http, stack.url("gateway"), account.key))
    await asyncio.gather(
        _run(walk, llm, "completed", {"kind": "ok", "words": 20, "between_chunks_ms": 20}),
        _run(walk, llm, "incomplete", {"kind": "length", "words": 20}),
        _run(walk, llm, "failed", {"kind": "status", "status": 400}),
        _cancel_two(walk, llm),
    )
    await _revoke(walk, llm, stripe)
    await walk.charged()
    return walk


async def _run(walk: Walk, llm: LlmControl, status: str, step: dict[str, Any]) -> None:
    marker = uuid4().hex
    await llm.script(marker, step)
    walk.requests[status] = await walk.parley.post(await walk.parley.session(), f"[[{marker}]]")
    assert (await walk.parley.wait_ended(walk.requests[status]))["status"] == status


async def _cancel_two(walk: Walk, llm: LlmControl) -> None:
    """One that runs, and the one behind it that never will."""
    marker = uuid4().hex
    await llm.script(marker, {"kind": "stall", "after_chunks": 0})
    session_id = await walk.parley.session()
    walk.requests["cancelled running"] = await walk.parley.post(session_id, f"[[{marker}]]")
    walk.requests["cancelled waiting"] = await walk.parley.post(session_id, "never said")
    await llm.wait("in_flight >= 1", marker=marker)
    for name in ("cancelled waiting", "cancelled running"):
        await walk.parley.ask("POST", f"/v1/requests/{walk.requests[name]}/cancel")
        assert (await walk.parley.wait_ended(walk.requests[name]))["status"] == "cancelled"


async def _revoke(walk: Walk, llm: LlmControl, stripe: StripeControl) -> None:
    """The subscription ends while a turn runs: that one is answered, the one behind it is refused."""
    marker = uuid4().hex
    await llm.close_gate(marker, marker)
    session_id = await walk.parley.session()
    walk.requests["last"] = await walk.parley.post(session_id, f"[[{marker}]]")
    walk.requests["refused"] = await walk.parley.post(session_id, "too late")
    await llm.wait("calls >= 1", marker=marker)
    await stripe.change_subscription(walk.account.subscription_id, status="canceled")
    async with asyncio.timeout(GUARD_SECONDS):
        while (await walk.parley.ask("GET", "/v1/eligibility"))["decision"] != "DENY":
            await asyncio.sleep(0.05)
    await llm.open_gate(marker)
    assert (await walk.parley.wait_ended(walk.requests["refused"]))["status"] == "refused"
