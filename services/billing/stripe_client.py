"""The only place that imports stripe: what we read and make there, and what its errors mean to us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar, cast

import aiohttp
import stripe

from shared.errors import ParleyError, Transient
from shared.logs import get_logger
from shared.metrics import histogram
from shared.resource import Resource

log = get_logger(__name__)

Body: TypeAlias = dict[str, Any]
Result = TypeVar("Result")

ACCOUNT_KEY: Final = "parley_account_id"
"""The metadata of a Stripe customer that says whose it is."""

_CALL_SECONDS_MAX: Final = 5.0
_PAGE_SIZE: Final = 100
_PAGES_PER_CUSTOMER_MAX: Final = 10

_call_seconds = histogram("billing_stripe_call_seconds", "Time of a call to Stripe.", ("call", "outcome"))


class StripeUnavailable(Transient):
    """Stripe did not answer, or answered that we should come again; `code` says how."""

    def __init__(self, code: str) -> None:
        super().__init__(f"Stripe is not available ({code})")
        self.code = code


class StripeRefused(ParleyError):
    """Stripe understood and said no: the same call would be refused again. `param` is what it found fault with."""

    def __init__(self, code: str, param: str | None = None) -> None:
        super().__init__(f"Stripe refused the call ({code})")
        self.code = code
        self.param = param

    @property
    def misses_customer(self) -> bool:
        """The customer that the call named is not there, or not any more."""
        return self.param == "customer" and self.code in ("not_found", "resource_missing")


@dataclass(frozen=True)
class Page:
    """Some objects, and the id after which the next page starts; None where this was the last."""

    items: list[Body]
    next_after: str | None


class StripeClient(Resource):
    """One client for one event loop. Every call has an end; reads are not retried here."""

    def __init__(self, api_key: str, api_base: str) -> None:
        self._api_key = api_key
        self._api_base = api_base
        self._http: stripe.AIOHTTPClient | None = None
        self._client: stripe.StripeClient | None = None

    async def start(self) -> None:
        stripe.enable_telemetry = False
        self._http = stripe.AIOHTTPClient(timeout=_CALL_SECONDS_MAX)
        self._client = stripe.StripeClient(
            self._api_key,
            http_client=self._http,
            max_network_retries=0,
            base_addresses={"api": self._api_base},
        )

    async def stop(self) -> None:
        if self._http is not None:
            await self._http.close_async()  # type: ignore[no-untyped-call]

    async def subscription(self, subscription_id: str) -> Body | None:
        """As it is now, with its latest invoice; None where Stripe has none of this id."""
        params: Any = {"expand": ["latest_invoice"]}
        return await self._found("subscription", self._v1.subscriptions.retrieve_async(subscription_id, params))

    async def customer(self, customer_id: str) -> Body | None:
        """A deleted one is `{"id": ..., "deleted": true}`."""
        return await self._found("customer", self._v1.customers.retrieve_async(customer_id))

    async def known_customer(self, customer_id: str) -> Body:
        """One that was there once. Stripe never stops answering for it, so where it has none of this id our key belongs
        to another account or mode; raises StripeUnavailable then, for a wrong key is an outage."""
        body = await self.customer(customer_id)
        if body is None:
            log.error("stripe.customer_elsewhere", customer_id=customer_id)
            raise StripeUnavailable("customer_elsewhere")
        return body

    async def charge(self, charge_id: str) -> Body | None:
        return await self._found("charge", self._v1.charges.retrieve_async(charge_id))

    async def disputes_of(self, charge_id: str) -> list[Body]:
        params: Any = {"charge": charge_id, "limit": _PAGE_SIZE}
        return _page(await self._call("disputes", self._v1.disputes.list_async(params))).items

    async def fraud_warnings_of(self, charge_id: str) -> list[Body]:
        params: Any = {"charge": charge_id, "limit": _PAGE_SIZE}
        return _page(await self._call("fraud_warnings", self._v1.radar.early_fraud_warnings.list_async(params))).items

    async def invoice_of(self, payment_intent_id: str) -> str | None:
        """The invoice that a payment was for; None where it was for none."""
        params: Any = {"payment": {"type": "payment_intent", "payment_intent": payment_intent_id}, "limit": 1}
        found = _page(await self._call("invoice_payments", self._v1.invoice_payments.list_async(params))).items
        invoice = found[0].get("invoice") if found else None
        return str(invoice["id"]) if isinstance(invoice, dict) else invoice

    async def subscriptions_of(self, customer_id: str) -> list[Body]:
        """All of them, ended ones too."""
        found: list[Body] = []
        after: str | None = None
        for _ in range(_PAGES_PER_CUSTOMER_MAX):
            page = await self.subscriptions_page(after=after, customer_id=customer_id)
            found += page.items
            after = page.next_after
            if after is None:
                return found
        raise StripeRefused("too_many_subscriptions")

    async def subscriptions_page(self, *, after: str | None, customer_id: str | None = None) -> Page:
        params: Any = {"status": "all", "limit": _PAGE_SIZE, "expand": ["data.latest_invoice"]}
        params |= {"starting_after": after} if after is not None else {}
        params |= {"customer": customer_id} if customer_id is not None else {}
        return _page(await self._call("subscriptions", self._v1.subscriptions.list_async(params)))

    async def undelivered_events(self, *, since: datetime) -> AsyncIterator[list[Body]]:
        """Pages of events that some endpoint of the account did not confirm, newest first."""
        after: str | None = None
        while True:
            params: Any = {
                "delivery_success": False,
                "created": {"gte": int(since.timestamp())},
                "limit": _PAGE_SIZE,
            }
            params |= {"starting_after": after} if after is not None else {}
            page = _page(await self._call("events", self._v1.events.list_async(params)))
            yield page.items
            after = page.next_after
            if after is None:
                return

    async def create_customer(self, account_id: str, *, idempotency_key: str) -> str:
        params: Any = {"metadata": {ACCOUNT_KEY: account_id}}
        options = _repeatable(idempotency_key)
        made = await self._call("create_customer", self._v1.customers.create_async(params, options))
        return str(_dict(made)["id"])

    async def create_checkout_session(self, params: Mapping[str, Any], *, idempotency_key: str) -> Body:
        options = _repeatable(idempotency_key)
        creating = self._v1.checkout.sessions.create_async(cast(Any, dict(params)), options)
        return _dict(await self._call("create_checkout", creating))

    async def create_portal_session(self, customer_id: str, return_url: str) -> str:
        params: Any = {"customer": customer_id, "return_url": return_url}
        made = await self._call("create_portal", self._v1.billing_portal.sessions.create_async(params))
        return str(_dict(made)["url"])

    @property
    def _v1(self) -> Any:
        if self._client is None:
            raise StripeUnavailable("not_started")
        return self._client.v1

    async def _found(self, name: str, calling: Awaitable[Any]) -> Body | None:
        try:
            return _dict(await self._call(name, calling))
        except StripeRefused as error:
            if error.code == "not_found":
                return None
            raise

    async def _call(self, name: str, calling: Awaitable[Result]) -> Result:
        started = asyncio.get_running_loop().time()
        outcome = "done"
        try:
            async with asyncio.timeout(_CALL_SECONDS_MAX):
                return await calling
        except TimeoutError:
            outcome = "timeout"
            raise StripeUnavailable(outcome) from None
        except (aiohttp.ClientError, OSError) as error:  # the library lets these out while it reads a reply's body
            outcome = "connection"
            raise StripeUnavailable(outcome) from error
        except stripe.StripeError as error:
            translated = _translated(error)
            outcome = translated.code
            raise translated from error
        finally:
            _call_seconds.labels(name, outcome).observe(asyncio.get_running_loop().time() - started)


def signature_matches(body: str, header: str, secret: str) -> bool:
    """Whether `header` signs `body` with `secret`, whatever its age."""
    try:
        return bool(stripe.WebhookSignature.verify_header(body, header, secret, tolerance=None))
    except stripe.SignatureVerificationError:
        return False


def _translated(error: stripe.StripeError) -> StripeUnavailable | StripeRefused:
    """A wrong key is an outage: the configuration is corrected and the same call succeeds."""
    param: str | None = getattr(error, "param", None)
    if error.http_status == 404:
        return StripeRefused("not_found", param)
    if error.http_status == 400:
        return StripeRefused(str(error.code or "invalid_request"), param)
    if isinstance(error, stripe.APIConnectionError):
        return StripeUnavailable("connection")
    return StripeUnavailable(f"http_{error.http_status}")


def _repeatable(idempotency_key: str) -> Any:
    """Stripe answers 409 while the same key is at work for another caller: a moment later it has the result."""
    return {"idempotency_key": idempotency_key, "max_network_retries": 3}


def _page(answered: Any) -> Page:
    body = _dict(answered)
    items = [item for item in body.get("data", []) if isinstance(item, dict)]
    return Page(items, str(items[-1]["id"]) if body.get("has_more") is True and items else None)


def _dict(answered: Any) -> Body:
    """Plain data: StripeObject is no dict, and its decimals are no JSON."""
    return cast(Body, answered.to_dict(for_json=True))
