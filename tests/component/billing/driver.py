"""The running service as its neighbours drive it: Stripe's API and webhooks, the internal API, the bus."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from stripe import WebhookSignature

from shared.contracts.billing import HoldReplies, HoldReply, HoldRequest, HoldRequests
from shared.ids import new_id
from shared.messaging.owed import OwedPublishes
from shared.postgres import Database
from shared.runtime import App
from tests.support.bus import Bus, eventually
from tests.support.standins import StripeControl

TOKEN = "a-service-token-of-tests"
SECRETS = ("whsec_first", "whsec_second")


@dataclass
class Billing:
    """Billing, the stand-in for Stripe that it talks to, its database and its bus."""

    http: aiohttp.ClientSession
    url: str
    database: Database
    bus: Bus
    control: StripeControl
    stripe_url: str
    app: App

    @property
    def changes(self) -> OwedPublishes:
        """Of decisions."""
        return next(resource for resource in self.app.resources if isinstance(resource, OwedPublishes))

    async def call(
        self,
        method: str,
        path: str,
        *,
        account_id: str | None = None,
        body: object = None,
        token: str = TOKEN,
    ) -> tuple[int, Any]:
        """Status and body of an internal call."""
        headers = {"authorization": f"Bearer {token}"}
        if account_id is not None:
            headers["parley-account"] = account_id
        async with self.http.request(method, self.url + path, json=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def eligibility(self, account_id: str) -> dict[str, Any]:
        status, body = await self.call("GET", f"/internal/accounts/{account_id}/eligibility", account_id=account_id)
        assert status == 200, body
        answer: dict[str, Any] = body
        return answer

    async def decides(self, account_id: str, decision: str, reason: str) -> dict[str, Any]:
        """The account's eligibility once it is this one."""

        async def is_so() -> bool:
            answer = await self.eligibility(account_id)
            return (answer["decision"], answer["reasons"][0]) == (decision, reason)

        try:
            await eventually(is_so)
        except TimeoutError:
            raise AssertionError(f"wanted {decision} {reason}: {await self.eligibility(account_id)}") from None
        return await self.eligibility(account_id)

    async def hold(self, *asked: HoldRequest) -> list[HoldReply]:
        body = HoldRequests(holds=asked).model_dump(mode="json")
        status, answer = await self.call("POST", "/internal/holds", body=body)
        assert status == 200, answer
        return list(HoldReplies.model_validate(answer).holds)

    async def stripe(self, method: str, path: str, **form: str) -> dict[str, Any]:
        """A call of Stripe's own API."""
        async with self.http.request(
            method, self.stripe_url + path, data=form or None, headers={"authorization": "Bearer sk_test_x"}
        ) as response:
            body: dict[str, Any] = await response.json()
            assert response.status == 200, body
            return body

    async def customer(self, account_id: str | None) -> str:
        form = {"metadata[parley_account_id]": account_id} if account_id is not None else {"email": "a@b.c"}
        customer_id: str = (await self.stripe("POST", "/v1/customers", **form))["id"]
        return customer_id

    async def subscribe(self, account_id: str, price: str = "price_parley_pro", **form: str) -> dict[str, Any]:
        """A new customer with a subscription, once billing has heard of it."""
        customer_id = await self.customer(account_id)
        made = await self.stripe(
            "POST", "/v1/subscriptions", **{"customer": customer_id, "items[0][price]": price, **form}
        )
        await self.settled()
        return made

    async def subscribed(self) -> tuple[str, dict[str, Any]]:
        """An account of its own that may work, and its subscription."""
        account_id = new_id("acct")
        made = await self.subscribe(account_id)
        await self.decides(account_id, "ALLOW", "active")
        return account_id, made

    async def settled(self) -> None:
        """Every webhook was delivered and every stored event was worked on."""
        await self.control.wait_delivered()
        await self.worked_off()

    async def worked_off(self) -> None:
        """Every stored event was worked on."""

        async def none_waits() -> bool:
            waiting: int = await self.database.fetchval(
                "SELECT count(*) FROM stripe_events WHERE state IN ('received', 'failed')"
            )
            return waiting == 0

        await eventually(none_waits)

    async def webhook(
        self,
        body: bytes | Mapping[str, Any],
        *,
        secret: str = SECRETS[0],
        age_seconds: float = 0,
        header: str | None = None,
        path: str = "/webhooks/stripe",
    ) -> tuple[int, Any]:
        """A delivery that is signed over exactly this body, unless the header is given."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        if header is None:
            timestamp = int(time.time() - age_seconds)
            header = WebhookSignature.generate_signature_header(raw.decode("utf-8", "replace"), secret, timestamp)
        headers = {"Stripe-Signature": header} if header else {}
        async with self.http.post(self.url + path, data=io.BytesIO(raw), headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def events_stored(self) -> int:
        count: int = await self.database.fetchval("SELECT count(*) FROM stripe_events")
        return count

    async def event(self, event_id: str) -> dict[str, Any]:
        row = await self.database.fetchrow("SELECT * FROM stripe_events WHERE event_id = $1", event_id)
        assert row is not None
        return dict(row)

    async def ended(self, event_id: str) -> dict[str, Any]:
        """The event's row once it was worked on."""

        async def is_over() -> bool:
            return (await self.event(event_id))["state"] not in {"received", "failed"}

        await eventually(is_over)
        return await self.event(event_id)


def event_of(
    found: Mapping[str, Any], event_type: str = "customer.subscription.updated", **fields: Any
) -> dict[str, Any]:
    """A snapshot event as Stripe would send it about this object."""
    return {
        "id": new_id("evt"),
        "object": "event",
        "type": event_type,
        "livemode": False,
        "api_version": "2026-10-28.endive",
        "created": int(time.time()),
        "data": {"object": dict(found)},
        **fields,
    }
