"""An account's customer in Stripe: made once, forgotten where Stripe deleted it, replaced by the next checkout."""

from __future__ import annotations

from typing import Any

import pytest

from services.billing.config import Settings
from services.billing.reconciler import Reconciler
from services.billing.store import build_stores
from services.billing.stripe_client import StripeClient
from shared.clock import SystemClock
from tests.component.billing.driver import Billing, event_of
from tests.support.bus import eventually

URLS = {"success_url": "https://app.example/ok", "cancel_url": "https://app.example/no"}
BACK = {"return_url": "https://app.example/back"}
LIVE = "SELECT customer_id FROM customers WHERE account_id = $1 AND NOT deleted"


async def checkout(billing: Billing, account_id: str, plan: str = "pro") -> tuple[int, Any]:
    return await billing.call("POST", f"/internal/accounts/{account_id}/checkout", body={"plan": plan, **URLS})


async def portal(billing: Billing, account_id: str) -> tuple[int, Any]:
    return await billing.call("POST", f"/internal/accounts/{account_id}/portal", body=BACK)


async def with_a_key_of_another_account(billing: Billing) -> None:
    """Stripe knows nothing of what we name: 404 for what is in the path, 400 for what is a parameter."""

    def refused(status: int, param: str) -> dict[str, Any]:
        return {"status": status, "error": {"code": "resource_missing", "param": param}}

    rules = [
        {
            "match": {"method": method, "path": path},
            "steps": [refused(status, param)] * 50,
        }
        for method, path, status, param in (
            ("POST", "/v1/billing_portal/sessions", 400, "customer"),
            ("POST", "/v1/checkout/sessions", 400, "customer"),
            ("GET", "/v1/customers/*", 404, "id"),
            ("GET", "/v1/subscriptions/*", 404, "id"),
        )
    ]
    await billing.control.ask("POST", "/faults", {"rules": rules})


async def test_a_key_of_another_account_is_an_outage_that_changes_nothing(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    await with_a_key_of_another_account(billing)
    assert (await portal(billing, account_id))[0] == 503
    assert (await checkout(billing, account_id, "basic"))[0] == 503
    await billing.worked_off()
    assert (await billing.eligibility(account_id))["reasons"] == ["active"]
    await billing.control.ask("DELETE", "/faults")
    assert await billing.database.fetchval(LIVE, account_id) == made["customer"]
    again = await checkout(billing, account_id)
    assert (again[0], again[1]["code"]) == (409, "already_subscribed")
    assert (await portal(billing, account_id))[0] == 200


@pytest.mark.usefixtures("quick_events")
@pytest.mark.parametrize("kind", ["customer", "subscription"])
async def test_what_another_account_does_not_know_is_looked_at_again(billing: Billing, kind: str) -> None:
    account_id, made = await billing.subscribed()
    await with_a_key_of_another_account(billing)
    event = event_of(made) if kind == "subscription" else event_of({"object": "customer", "id": made["customer"]})
    await billing.webhook(event)

    async def has_failed() -> bool:
        return bool((await billing.event(event["id"]))["last_error"] == "stripe_customer_elsewhere")

    await eventually(has_failed)
    assert (await billing.eligibility(account_id))["reasons"] == ["active"]
    await billing.control.ask("DELETE", "/faults")
    await billing.database.execute("UPDATE stripe_events SET state = 'received', ended_at = NULL WHERE state = 'dead'")
    assert (await billing.ended(event["id"]))["state"] == "applied"
    assert (await billing.eligibility(account_id))["reasons"] == ["active"]


async def taken_for_deleted(billing: Billing) -> tuple[str, dict[str, Any]]:
    """An account whose customer we take for deleted, with all that he had, while Stripe has him."""
    account_id, made = await billing.subscribed()
    await billing.database.execute("UPDATE customers SET deleted = TRUE WHERE account_id = $1", account_id)
    await billing.database.execute(
        """
        UPDATE subscriptions SET status = 'canceled', fact = fact || '{"status": "canceled", "customer_deleted": true}'
        WHERE subscription_id = $1
        """,
        made["id"],
    )
    await billing.database.execute("UPDATE eligibilities SET valid_until = now() WHERE account_id = $1", account_id)
    await billing.decides(account_id, "DENY", "customer_deleted")
    return account_id, made


async def test_a_customer_that_stripe_still_has_is_found_by_the_comparison(
    billing: Billing, settings: Settings
) -> None:
    account_id, _ = await taken_for_deleted(billing)
    stripe = StripeClient("sk_test_x", settings.stripe_api_base)
    await stripe.start()
    try:
        stores = build_stores(billing.database)
        reconciler = Reconciler(stores.events, stores.facts, stripe, SystemClock())
        await reconciler.run()
        await billing.decides(account_id, "ALLOW", "active")
        before = await billing.events_stored()
        await reconciler.run()
        assert await billing.events_stored() == before, "where nothing differs nothing is left to do"
    finally:
        await stripe.stop()


async def test_a_customer_that_stripe_still_has_is_found_by_an_event_of_his_subscription(billing: Billing) -> None:
    account_id, made = await taken_for_deleted(billing)
    await billing.webhook(event_of(made))
    await billing.decides(account_id, "ALLOW", "active")
