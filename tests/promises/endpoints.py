"""One call for every endpoint that changes something, each about a subject of its own that is ready for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import uuid4

import aiohttp
from stripe import WebhookSignature

from deploy.local.stack import Stack
from shared.ids import new_id
from tests.component.billing.driver import event_of
from tests.support.parley import Parley
from tests.support.stack import Account, make_account, subscribed_account
from tests.support.standins import LlmControl

Answer: TypeAlias = tuple[int, Any]
Again: TypeAlias = Callable[[], Awaitable[Answer]]
"""The same call each time, by turns at one replica and the other."""

PAGES: Final = {"success_url": "https://shop.example/done", "cancel_url": "https://shop.example/back"}
BACK: Final = {"return_url": "https://shop.example/account"}


@dataclass
class Caller:
    """Whoever may call anything."""

    stack: Stack
    http: aiohttp.ClientSession
    llm: LlmControl
    account: Account

    @property
    def parley(self) -> Parley:
        return Parley(self.http, self.stack.url("gateway"), self.account.key)

    def public(self, method: str, path: str, body: object = None, *, key: str = "", idempotency: str = "") -> Again:
        headers = {"authorization": f"Bearer {key or self.account.key}"}
        if idempotency:
            headers["idempotency-key"] = idempotency
        return self._call("gateway", method, path, headers, body)

    def internal(self, service: str, path: str, body: object, *, account_id: str = "") -> Again:
        headers = {"authorization": f"Bearer {self.stack.secrets.service_token}"}
        if account_id:
            headers["parley-account"] = account_id
        return self._call(service, "POST", path, headers, body)

    def webhook(self, path: str, event: dict[str, Any]) -> Again:
        raw, secret = json.dumps(event), self.stack.secrets.stripe_webhook_secret
        header = WebhookSignature.generate_signature_header(raw, secret, int(time.time()))
        return self._call("billing", "POST", path, {"stripe-signature": header}, event, raw=raw.encode())

    async def stranger(self) -> Account:
        return await asyncio.to_thread(make_account, self.stack, "stranger")

    def _call(
        self, service: str, method: str, path: str, headers: dict[str, str], body: object, *, raw: bytes | None = None
    ) -> Again:
        replicas = [self.stack.url(service), self.stack.url(f"{service}-2")]
        content = {"data": raw} if raw is not None else {"json": body}

        async def call() -> Answer:
            replicas.reverse()
            url = replicas[0] + path
            async with self.http.request(method, url, headers=headers, **content) as response:
                text = await response.text()
                return response.status, json.loads(text) if text else None

        return call


async def caller_of(stack: Stack, http: aiohttp.ClientSession, llm: LlmControl) -> Caller:
    return Caller(stack, http, llm, await asyncio.to_thread(subscribed_account, stack, "caller"))


async def begin_session(caller: Caller) -> Again:
    return caller.public("POST", "/v1/sessions", {"instructions": "Be brief."}, idempotency=uuid4().hex)


async def delete_session(caller: Caller) -> Again:
    return caller.public("DELETE", f"/v1/sessions/{await caller.parley.session()}")


async def send_turn(caller: Caller) -> Again:
    path = f"/v1/sessions/{await caller.parley.session()}/requests"
    return caller.public("POST", path, {"input": "hello"}, idempotency=uuid4().hex)


async def cancel_running(caller: Caller) -> Again:
    marker = uuid4().hex
    await caller.llm.script(marker, {"kind": "stall", "after_chunks": 0})
    request_id = await caller.parley.post(await caller.parley.session(), f"[[{marker}]]")
    await caller.llm.wait("in_flight >= 1", marker=marker)
    return caller.public("POST", f"/v1/requests/{request_id}/cancel")


async def check_out(caller: Caller) -> Again:
    return caller.public("POST", "/v1/billing/checkout", {"plan": "pro", **PAGES}, key=(await caller.stranger()).key)


async def open_portal(caller: Caller) -> Again:
    return caller.public("POST", "/v1/billing/portal", BACK)


async def revoke_key(caller: Caller) -> Again:
    admin, path = caller.stack.admin_key(), f"/v1/admin/accounts/{caller.account.id}/keys"
    _, made = await caller.public("POST", path, {"name": "to go"}, key=admin)()
    return caller.public("DELETE", f"{path}/{made['id']}", key=admin)


async def check_out_inside(caller: Caller) -> Again:
    account_id = (await caller.stranger()).id
    body = {"plan": "pro", **PAGES}
    return caller.internal("billing", f"/internal/accounts/{account_id}/checkout", body, account_id=account_id)


async def open_portal_inside(caller: Caller) -> Again:
    account_id = caller.account.id
    return caller.internal("billing", f"/internal/accounts/{account_id}/portal", BACK, account_id=account_id)


async def hold(caller: Caller) -> Again:
    question = {"request_id": new_id("req"), "account_id": caller.account.id, "model": "default", "tokens": 100}
    return caller.internal(
        "billing", "/internal/holds", {"holds": [{**question, "expires_at": "2100-01-01T00:00:00Z"}]}
    )


async def look_up(caller: Caller) -> Again:
    return caller.internal("results", "/internal/results/lookup", {"request_ids": [new_id("req")]})


async def look_up_logs(caller: Caller) -> Again:
    return caller.internal("results", "/internal/logs/lookup", {"after": {new_id("req"): 0}})


async def snapshot_webhook(caller: Caller) -> Again:
    found = {"object": "subscription", "id": caller.account.subscription_id, "customer": caller.account.customer_id}
    return caller.webhook("/webhooks/stripe", event_of(found))


async def thin_webhook(caller: Caller) -> Again:
    related = {"id": caller.account.subscription_id, "type": "subscription", "url": "/v1/subscriptions/x"}
    event = {"id": new_id("evt"), "object": "v2.core.event", "type": "v1.customer.subscription.updated"}
    return caller.webhook("/webhooks/stripe/thin", {**event, "livemode": False, "related_object": related})


CASES: Final[dict[str, Callable[[Caller], Awaitable[Again]]]] = {
    "POST /v1/sessions": begin_session,
    "DELETE /v1/sessions/{session_id}": delete_session,
    "POST /v1/sessions/{session_id}/requests": send_turn,
    "POST /v1/requests/{request_id}/cancel": cancel_running,
    "POST /v1/billing/checkout": check_out,
    "POST /v1/billing/portal": open_portal,
    "DELETE /v1/admin/accounts/{account_id}/keys/{key_id}": revoke_key,
    "POST /internal/accounts/{account_id}/checkout": check_out_inside,
    "POST /internal/accounts/{account_id}/portal": open_portal_inside,
    "POST /internal/holds": hold,
    "POST /internal/results/lookup": look_up,
    "POST /internal/logs/lookup": look_up_logs,
    "POST /webhooks/stripe": snapshot_webhook,
    "POST /webhooks/stripe/thin": thin_webhook,
}

# Not covered: without an Idempotency-Key each POST of a session or a turn means another one, and these two take none.
# An administrator who is unsure sees in the list what was made, and a key that nobody has seen is revoked.
MAKE_ANOTHER: Final = {"POST /v1/admin/accounts", "POST /v1/admin/accounts/{account_id}/keys"}

# Two pages of Stripe's portal, or 204 and then 404 for a session that is gone: the answers differ, the rows may not.
ANSWER_DIFFERS: Final = {
    "POST /v1/billing/portal",
    "POST /internal/accounts/{account_id}/portal",
    "DELETE /v1/sessions/{session_id}",
    "POST /webhooks/stripe",
    "POST /webhooks/stripe/thin",
}
