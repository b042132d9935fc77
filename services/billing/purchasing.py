"""Leads an account to Stripe: one customer for each account, one open checkout for each plan, the portal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from services.billing.policy import Policy
from services.billing.schemas import CheckoutAsked
from services.billing.store import Stores
from services.billing.store.facts import Customer
from services.billing.stripe_client import ACCOUNT_KEY, StripeClient, StripeRefused
from services.billing.stripe_event import look_event
from services.billing.subscription import TERMINAL_STATUSES, SubscriptionFact
from shared.clock import Clock
from shared.errors import Problem
from shared.ids import new_id
from shared.logs import get_logger
from shared.postgres import Database

log = get_logger(__name__)

CHECKOUT_OPEN_FOR: Final = timedelta(hours=23)
"""Stripe keeps a session for 24 hours, and an idempotency key for at least as long."""

PAYMENT_LOOK_SECONDS: Final = 5.0
"""However often a page asks, Stripe is asked once in this time."""


class Purchasing:
    """Every call that makes something in Stripe has a key of ours: a repeat makes nothing twice."""

    def __init__(
        self,
        database: Database,
        stores: Stores,
        stripe: StripeClient,
        policy: Policy,
        clock: Clock,
        *,
        on_stored: Callable[[], None],
    ) -> None:
        self._database = database
        self._stores = stores
        self._stripe = stripe
        self._policy = policy
        self._clock = clock
        self._on_stored = on_stored

    async def checkout(self, account_id: str, asked: CheckoutAsked) -> str:
        """The address of Stripe's payment page for the plan."""
        plan, price = self._plan_and_price(asked)
        await self._refuse_second_subscription(account_id, plan)
        now = self._clock.now()
        attempt = await self._stores.checkouts.insert_checkout_if_none_open(
            new_id("chk"), account_id, plan, now=now, expires_at=now + CHECKOUT_OPEN_FOR
        )
        if attempt.url is not None:
            return attempt.url
        session = await self._session(account_id, price, asked, attempt.checkout_id)
        url = str(session["url"])
        await self._stores.checkouts.update_checkout_session_if_open(attempt.checkout_id, str(session["id"]), url)
        log.info("checkout.opened", account_id=account_id, plan=plan, checkout_id=attempt.checkout_id)
        return url

    async def portal(self, account_id: str, return_url: str) -> str:
        """The address of Stripe's page where the account's owner manages cards, invoices and the subscription."""
        customer_id = await self._stores.facts.select_customer_of_account(account_id)
        if customer_id is None:
            raise _no_customer()
        try:
            return await self._stripe.create_portal_session(customer_id, return_url)
        except StripeRefused as error:
            await self._forget_if_deleted(account_id, customer_id, error)
            raise _no_customer() from error

    async def look_for_payment(self, account_id: str) -> None:
        """Whoever comes back from the payment page may be here before the webhook: look at the customer now."""
        checkout_id = await self._stores.checkouts.select_checkout_open(account_id, now=self._clock.now())
        customer_id = await self._stores.facts.select_customer_of_account(account_id) if checkout_id else None
        if customer_id is None:
            return
        turn = int(self._clock.now().timestamp() / PAYMENT_LOOK_SECONDS)
        await self._look_at(customer_id, f"checkout:{checkout_id}:{turn}")

    def _plan_and_price(self, asked: CheckoutAsked) -> tuple[str, str]:
        sold = sorted(known for known, found in self._policy.plans.items() if found.stripe_prices)
        name = asked.plan or self._policy.plan_of_price.get(asked.price or "")
        if asked.plan is None and asked.price is None and len(sold) == 1:
            name = sold[0]
        plan = self._policy.plans.get(name or "")
        if name is None or plan is None or not plan.stripe_prices:
            what = "Name a plan" if name is None and asked.price is None else "No such plan is for sale"
            raise Problem(422, "plan_not_found", f"{what}; there are: {', '.join(sold)}.")
        if asked.price is not None and asked.price not in plan.stripe_prices:
            raise Problem(422, "price_not_in_plan", f"The plan {name} has no such price.")
        return name, asked.price or plan.stripe_prices[0]

    async def _refuse_second_subscription(self, account_id: str, plan: str) -> None:
        row = (await self._stores.decisions.select_in_force([account_id])).get(account_id)
        subscriptions = row.facts.subscriptions if row is not None else ()
        if any(self._gives(fact, plan) for fact in subscriptions):
            detail = "The account already has a subscription to this plan; the portal is where it is managed."
            raise Problem(409, "already_subscribed", detail)

    def _gives(self, fact: SubscriptionFact, plan: str) -> bool:
        """A subscription whose first payment is pending is no obstacle: its owner is about to try again."""
        ended = fact.status in TERMINAL_STATUSES or fact.status == "incomplete" or fact.customer_deleted
        return not ended and any(self._policy.plan_of_price.get(line.price_id) == plan for line in fact.lines)

    async def _session(self, account_id: str, price: str, asked: CheckoutAsked, checkout_id: str) -> dict[str, Any]:
        """A checkout session of the account's customer; where that is gone from Stripe, of a new one."""
        customer_id = await self._customer(account_id)
        try:
            return await self._made(self._checkout_params(account_id, customer_id, price, asked), checkout_id)
        except StripeRefused as error:
            await self._forget_if_deleted(account_id, customer_id, error)
        try:
            new_id = await self._customer(account_id)
            return await self._made(self._checkout_params(account_id, new_id, price, asked), checkout_id)
        except StripeRefused as error:
            raise _refused(error) from error

    async def _forget_if_deleted(self, account_id: str, customer_id: str, error: StripeRefused) -> None:
        """Raises what the refused call is answered with, unless it was refused because the customer was deleted."""
        if not error.misses_customer:
            raise _refused(error) from error
        if not (await self._stripe.known_customer(customer_id)).get("deleted"):
            raise _refused(error) from error
        await self._forget(account_id, customer_id)

    async def _forget(self, account_id: str, customer_id: str) -> None:
        """A customer that Stripe has deleted. What he had is looked at as if Stripe had told of his end; that comes
        first, for were we to die in between, the look would find it all."""
        log.warning("customer.gone", account_id=account_id, customer_id=customer_id)
        await self._look_at(customer_id, f"gone:{customer_id}:{self._clock.now():%Y%m%d%H}")
        await self._keep_customer(Customer(customer_id, account_id, deleted=True))

    async def _look_at(self, customer_id: str, why: str) -> None:
        look = look_event(why, customer_id=customer_id, subscription_id=None)
        if await self._stores.events.insert_events_if_new([look]):
            self._on_stored()

    async def _customer(self, account_id: str) -> str:
        """The account's Stripe customer, made once: the key covers the time until its row is here. After a deleted one
        it is another key, for under the old one Stripe would answer with that customer again."""
        known = await self._stores.facts.select_customer_of_account(account_id)
        if known is not None:
            return known
        deleted = await self._stores.facts.select_count_customers_deleted(account_id)
        key = f"parley-customer-{account_id}" + (f"-after-{deleted}" if deleted else "")
        try:
            customer_id = await self._stripe.create_customer(account_id, idempotency_key=key)
        except StripeRefused as error:
            raise _refused(error) from error
        await self._keep_customer(Customer(customer_id, account_id, deleted=False))
        if deleted:  # what was decided of who has no customer any more is decided anew
            await self._look_at(customer_id, f"made:{customer_id}")
        return customer_id

    async def _keep_customer(self, customer: Customer) -> None:
        async with self._database.transaction() as connection:
            await self._stores.facts.upsert_customer(connection, customer, fetched_at=self._clock.now())

    def _checkout_params(self, account_id: str, customer_id: str, price: str, asked: CheckoutAsked) -> dict[str, Any]:
        return {
            "mode": "subscription",
            "customer": customer_id,
            "client_reference_id": account_id,
            "line_items": [{"price": price, "quantity": 1}],
            "subscription_data": {"metadata": {ACCOUNT_KEY: account_id}},
            "success_url": asked.success_url,
            "cancel_url": asked.cancel_url,
        }

    async def _made(self, params: dict[str, Any], checkout_id: str) -> dict[str, Any]:
        key = f"parley-{checkout_id}-{_digest(params)}"
        return await self._stripe.create_checkout_session(params, idempotency_key=key)


def _digest(params: dict[str, Any]) -> str:
    """Stripe refuses a known key that comes with other parameters, such as another page to return to."""
    return hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest()[:16]


def _no_customer() -> Problem:
    return Problem(409, "no_customer", "The account has bought nothing yet: begin with a checkout.")


def _refused(error: StripeRefused) -> Problem:
    """A 4xx for the gateway, which takes a 5xx for an outage and tells its caller to come again."""
    log.error("stripe.refused", code=error.code, param=error.param)
    return Problem(424, "stripe_refused", f"Stripe refused the call ({error.code}).")
