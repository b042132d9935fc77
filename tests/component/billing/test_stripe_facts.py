"""From Stripe to a decision: what the API says counts, whatever was delivered, how often and in which order."""

import asyncio
import json
import time

import pytest

from services.billing.app import build
from services.billing.config import Settings
from services.billing.reconciler import Reconciler
from services.billing.store import build_stores
from services.billing.stripe_client import StripeClient
from shared.clock import SystemClock
from shared.ids import new_id
from tests.component.billing.driver import Billing, event_of
from tests.support.bus import eventually
from tests.support.ports import free_port

DAY_SECONDS = 86_400


async def test_a_subscription_allows_and_its_cancellation_denies(billing: Billing) -> None:
    account_id = new_id("acct")
    await billing.decides(account_id, "DENY", "no_subscription")
    made = await billing.subscribe(account_id)
    answer = await billing.decides(account_id, "ALLOW", "active")
    assert (answer["plan"], answer["remaining"], answer["models"]) == ("pro", 5_000_000, None)
    await billing.stripe("DELETE", f"/v1/subscriptions/{made['id']}")
    denied = await billing.decides(account_id, "DENY", "canceled")
    assert denied["action_hint"] == "subscribe"
    assert denied["sequence"] > answer["sequence"]


@pytest.mark.parametrize(
    ("status", "decision", "reason", "hint"),
    [
        ("incomplete", "DENY", "first_payment_pending", "complete_payment"),
        ("incomplete_expired", "DENY", "first_payment_expired", "subscribe"),
        ("trialing", "ALLOW", "trial_active", None),
        ("active", "ALLOW", "cancel_scheduled", None),
        ("past_due", "ALLOW_GRACE", "past_due_grace", "update_payment_method"),
        ("unpaid", "DENY", "unpaid", "update_payment_method"),
        ("paused", "DENY", "paused_requested", "resume"),
        ("canceled", "DENY", "canceled", "subscribe"),
    ],
)
async def test_each_status_decides_over_http(
    billing: Billing, status: str, decision: str, reason: str, hint: str | None
) -> None:
    account_id, made = await billing.subscribed()
    changes: dict[str, object] = {"status": status}
    if status == "trialing":
        changes["trial_end"] = int(time.time()) + DAY_SECONDS
    if status == "active":
        changes["cancel_at_period_end"] = True
    await billing.control.change_subscription(made["id"], **changes)
    answer = await billing.decides(account_id, decision, reason)
    assert answer["action_hint"] == hint


@pytest.mark.parametrize("version", ["2025-02-24.acacia", "2025-03-31.basil", "2026-10-28.endive"])
async def test_every_version_of_the_api_decides_the_same(billing: Billing, version: str) -> None:
    await billing.control.ask("PUT", "/versions", {"api": version, "event_shape": version})
    account_id, made = await billing.subscribed()
    answer = await billing.eligibility(account_id)
    period_end = made["items"]["data"][0].get("current_period_end") or made["current_period_end"]
    assert answer["valid_until"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(period_end + 6 * 3600))


async def test_a_payload_that_says_active_is_not_believed_while_the_api_says_canceled(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    await billing.stripe("DELETE", f"/v1/subscriptions/{made['id']}")
    await billing.decides(account_id, "DENY", "canceled")
    stale = event_of({**made, "status": "active"})
    assert (await billing.webhook(stale))[0] == 200
    assert (await billing.ended(stale["id"]))["state"] == "applied"
    assert (await billing.eligibility(account_id))["reasons"] == ["canceled"]


async def test_deliveries_reordered_and_repeated_end_in_what_stripe_says(billing: Billing) -> None:
    await billing.control.ask("PUT", "/delivery", {"hold": True})
    accounts = [new_id("acct") for _ in range(5)]
    for place, account_id in enumerate(accounts):
        customer_id = await billing.customer(account_id)
        made = await billing.stripe(
            "POST", "/v1/subscriptions", **{"customer": customer_id, "items[0][price]": "price_parley_pro"}
        )
        await billing.control.change_subscription(made["id"], status="past_due")
        await billing.control.change_subscription(made["id"], status="unpaid" if place % 2 else "active")
    await billing.control.ask("POST", "/delivery/rules", {"rules": [{"match": {}, "steps": [{"copies": 3}] * 1000}]})
    await billing.control.ask("POST", "/delivery/release", {"order": "shuffled", "seed": 11})
    await billing.control.ask("PUT", "/delivery", {"hold": False})
    await billing.settled()
    for place, account_id in enumerate(accounts):
        await billing.decides(account_id, *(("DENY", "unpaid") if place % 2 else ("ALLOW", "active")))


async def test_a_customer_that_gets_its_account_later_is_taken_with_all_its_subscriptions(billing: Billing) -> None:
    account_id = new_id("acct")
    customer_id = await billing.customer(None)
    await billing.stripe(
        "POST", "/v1/subscriptions", **{"customer": customer_id, "items[0][price]": "price_parley_basic"}
    )
    await billing.settled()
    await billing.decides(account_id, "DENY", "no_subscription")
    await billing.stripe("POST", f"/v1/customers/{customer_id}", **{"metadata[parley_account_id]": account_id})
    answer = await billing.decides(account_id, "ALLOW", "active")
    assert (answer["plan"], answer["models"]) == ("basic", ["default"])
    other = new_id("acct")
    await billing.stripe("POST", f"/v1/customers/{customer_id}", **{"metadata[parley_account_id]": other})
    await billing.decides(other, "ALLOW", "active")
    await billing.decides(account_id, "DENY", "no_subscription")


async def test_a_deleted_customer_is_denied_and_remembered(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    await billing.stripe("DELETE", f"/v1/customers/{made['customer']}")
    await billing.decides(account_id, "DENY", "customer_deleted")


async def test_two_events_about_one_customer_at_once_leave_both_their_facts(billing: Billing) -> None:
    account_id = new_id("acct")
    customer_id = await billing.customer(account_id)
    await billing.control.ask("PUT", "/delivery", {"parallel": 8})
    await asyncio.gather(
        *(
            billing.stripe(
                "POST", "/v1/subscriptions", **{"customer": customer_id, "items[0][price]": "price_parley_basic"}
            )
            for _ in range(4)
        )
    )
    await billing.settled()
    stored = await billing.database.fetchval("SELECT count(*) FROM subscriptions WHERE status = 'active'")
    facts = await billing.database.fetchval(
        "SELECT jsonb_array_length(facts -> 'subscriptions') FROM eligibilities WHERE account_id = $1", account_id
    )
    assert (stored, facts) == (4, 4)


@pytest.mark.usefixtures("quick_events")
async def test_a_failing_stripe_is_tried_again_and_given_up_with_its_reason(billing: Billing) -> None:
    account_id = new_id("acct")
    customer_id = await billing.customer(account_id)
    await billing.settled()
    path = {"path": f"/v1/customers/{customer_id}"}
    await billing.control.ask(
        "POST", "/faults", {"rules": [{"match": path, "steps": [{"status": 500}, {"status": 503}]}]}
    )
    event = event_of({"object": "customer", "id": customer_id}, "customer.updated")
    await billing.webhook(event)
    row = await billing.ended(event["id"])
    assert (row["state"], row["last_error"]) == ("applied", "stripe_http_503")
    assert row["attempts"] == 3  # a try that failed is counted before another may begin
    await billing.control.ask("DELETE", "/faults")
    await billing.control.ask("POST", "/faults", {"rules": [{"match": path, "steps": [{"status": 429}] * 10}]})
    doomed = event_of({"object": "customer", "id": customer_id}, "customer.updated")
    await billing.webhook(doomed)
    row = await billing.ended(doomed["id"])
    assert (row["state"], row["attempts"], row["last_error"]) == ("dead", 5, "stripe_http_429")


async def test_the_change_is_announced_once_with_a_growing_sequence(billing: Billing) -> None:
    listener = await billing.bus.listen("eligibility.changed")
    account_id, made = await billing.subscribed()
    await billing.control.change_subscription(made["id"], status="unpaid")
    await billing.decides(account_id, "DENY", "unpaid")

    async def nothing_is_owed() -> bool:
        owed: int = await billing.database.fetchval(
            "SELECT sequence - published_sequence FROM eligibilities WHERE account_id = $1", account_id
        )
        return owed == 0

    await eventually(nothing_is_owed)
    last: int = await billing.database.fetchval("SELECT sequence FROM eligibilities WHERE account_id = $1", account_id)

    def mine() -> dict[int, list[str]]:
        """What was said, by sequence: two workers that announce at once may say a later one first."""
        bodies = [json.loads(message.body) for message in listener.heard]
        said: dict[int, list[str]] = {}
        for body in bodies:
            if body["account_id"] == account_id:
                said.setdefault(body["sequence"], []).append(body["eligibility"]["decision"])
        return said

    async def last_is_heard() -> bool:
        return last in mine()

    await eventually(last_is_heard)
    decisions = [said for _, said in sorted(mine().items())]
    assert decisions[-1] == ["DENY"]
    assert ["ALLOW"] in decisions
    assert all(len(said) == 1 for said in decisions)


async def test_the_comparison_with_stripe_finds_what_no_webhook_told(billing: Billing, settings: Settings) -> None:
    known, changed = await billing.subscribed()
    silent = new_id("acct")
    await billing.control.ask("PUT", "/delivery", {"url": None})
    await billing.control.change_subscription(changed["id"], status="unpaid", emit=False)
    customer_id = await billing.customer(silent)
    await billing.stripe(
        "POST", "/v1/subscriptions", **{"customer": customer_id, "items[0][price]": "price_parley_pro"}
    )
    stripe = StripeClient("sk_test_x", settings.stripe_api_base)
    await stripe.start()
    try:
        stores = build_stores(billing.database)
        reconciler = Reconciler(stores.events, stores.facts, stripe, SystemClock())
        await reconciler.run()
        await billing.decides(known, "DENY", "unpaid")
        await billing.decides(silent, "ALLOW", "active")
        await billing.worked_off()
        before = await billing.events_stored()
        await reconciler.run()
        assert await billing.events_stored() == before, "where nothing differs nothing is left to do"
    finally:
        await stripe.stop()


async def test_a_service_that_was_away_compares_when_it_comes_back(settings: Settings, billing: Billing) -> None:
    """The fixture's service compared at its start with an empty Stripe; another one starts with a full one."""
    await billing.control.ask("PUT", "/delivery", {"url": None})
    account_id = new_id("acct")
    customer_id = await billing.customer(account_id)
    await billing.stripe(
        "POST", "/v1/subscriptions", **{"customer": customer_id, "items[0][price]": "price_parley_pro"}
    )
    second = build(settings.model_copy(update={"http_port": free_port()}))
    started = []
    try:
        for resource in (second.database, *second.resources):
            await resource.start()
            started.append(resource)
        await billing.decides(account_id, "ALLOW", "active")
    finally:
        for resource in reversed(started):
            await resource.stop()


async def test_an_event_that_could_not_be_delivered_is_fetched(billing: Billing, settings: Settings) -> None:
    account_id = new_id("acct")
    await billing.control.ask("PUT", "/delivery", {"url": "http://127.0.0.1:1/nowhere", "attempts_max": 1})
    customer_id = await billing.customer(account_id)
    await billing.control.wait_delivered()
    stripe = StripeClient("sk_test_x", settings.stripe_api_base)
    await stripe.start()
    try:
        stores = build_stores(billing.database)
        await Reconciler(stores.events, stores.facts, stripe, SystemClock()).run()
    finally:
        await stripe.stop()
    await billing.settled()
    assert (
        await billing.database.fetchval("SELECT account_id FROM customers WHERE customer_id = $1", customer_id)
        == account_id
    )
