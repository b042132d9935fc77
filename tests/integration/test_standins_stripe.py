"""The Stripe stand-in is driven by the official SDK's async client, as billing drives Stripe."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import stripe

from deploy.local.standins.starting import Standin, standin
from tests.support.guard import GUARD_SECONDS

stripe.enable_telemetry = False
PRO = {"price": "price_parley_pro"}
UNTIL_HELD = {"until": "held_calls == 1", "timeout_seconds": GUARD_SECONDS}


@pytest.fixture(scope="module")
def process() -> Iterator[Standin]:
    with standin("stripe") as started:
        yield started


@pytest.fixture
async def control(process: Standin) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=process.control_url, timeout=1.5 * GUARD_SECONDS) as client:
        assert (await client.post("/reset")).status_code == 200
        yield client


@pytest.fixture
async def sdk(process: Standin, control: httpx.AsyncClient) -> AsyncIterator[stripe.StripeClient]:
    http = stripe.AIOHTTPClient(timeout=60)
    yield stripe.StripeClient("sk_test_x", http_client=http, base_addresses={"api": process.url})
    await http.close_async()  # type: ignore[no-untyped-call]


@pytest.fixture
async def raw(process: Standin, control: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=process.url, headers={"Authorization": "Bearer sk_test_x"}, timeout=GUARD_SECONDS
    ) as client:
        yield client


async def subscribed(sdk: stripe.StripeClient, **params: Any) -> tuple[stripe.Customer, stripe.Subscription]:
    customer = await sdk.v1.customers.create_async({"metadata": {"parley_account_id": "acct_1"}})
    wanted: Any = {"customer": customer.id, "items": [PRO], **params}
    return customer, await sdk.v1.subscriptions.create_async(wanted)


async def event_types(sdk: stripe.StripeClient) -> list[str]:
    """Oldest first."""
    events = await sdk.v1.events.list_async({"limit": 100})
    return [event.type for event in reversed(events.data)]


async def test_a_customer_lives_from_create_to_delete(sdk: stripe.StripeClient) -> None:
    customer = await sdk.v1.customers.create_async({"email": "a@b.c", "metadata": {"parley_account_id": "acct_1"}})
    assert customer.id.startswith("cus_")
    updated = await sdk.v1.customers.update_async(customer.id, {"name": "Ann", "metadata": {"more": "1"}})
    assert updated.metadata
    assert updated.metadata.to_dict() == {"parley_account_id": "acct_1", "more": "1"}
    found = await sdk.v1.customers.list_async({"email": "a@b.c"})
    assert [c.id for c in found.data] == [customer.id]
    await sdk.v1.customers.delete_async(customer.id)
    assert (await sdk.v1.customers.retrieve_async(customer.id)).deleted
    assert await event_types(sdk) == ["customer.created", "customer.updated", "customer.deleted"]


async def test_a_subscription_is_active_paid_and_has_its_period_on_the_item(sdk: stripe.StripeClient) -> None:
    customer, subscription = await subscribed(sdk, metadata={"plan": "pro"})
    assert subscription.status == "active"
    assert subscription.metadata.to_dict() == {"plan": "pro"}
    item = subscription["items"].data[0]
    assert item.id.startswith("si_")
    assert item.price.id == "price_parley_pro"
    assert item.current_period_start <= time.time() < item.current_period_end
    assert not hasattr(subscription, "current_period_end")
    read = await sdk.v1.subscriptions.retrieve_async(subscription.id, {"expand": ["latest_invoice", "customer"]})
    assert isinstance(read.latest_invoice, stripe.Invoice)
    assert read.latest_invoice.status == "paid"
    assert read.latest_invoice.parent
    assert read.latest_invoice.parent.subscription_details
    assert read.latest_invoice.parent.subscription_details.subscription == subscription.id
    assert isinstance(read.customer, stripe.Customer)
    assert read.customer.id == customer.id


async def test_parameters_decide_how_a_subscription_begins(sdk: stripe.StripeClient) -> None:
    _, trial = await subscribed(sdk, trial_period_days=7)
    _, incomplete = await subscribed(sdk, payment_behavior="default_incomplete")
    assert trial.status == "trialing"
    assert trial.trial_end == trial["items"].data[0].current_period_end
    assert incomplete.status == "incomplete"
    invoices = await sdk.v1.invoices.list_async({"subscription": incomplete.id})
    assert [invoice.status for invoice in invoices.data] == ["open"]


async def test_updates_change_the_plan_the_end_and_the_collection(sdk: stripe.StripeClient) -> None:
    _, subscription = await subscribed(sdk)
    item = subscription["items"].data[0].id
    changed = await sdk.v1.subscriptions.update_async(
        subscription.id,
        {
            "items": [{"id": item, "price": "price_parley_basic", "quantity": 3}],
            "cancel_at_period_end": True,
            "pause_collection": {"behavior": "void"},
        },
    )
    assert (changed["items"].data[0].id, changed["items"].data[0].quantity) == (item, 3)
    assert changed["items"].data[0].price.id == "price_parley_basic"
    assert changed.cancel_at == changed["items"].data[0].current_period_end
    assert changed.pause_collection
    assert changed.pause_collection.behavior == "void"
    cleared = await sdk.v1.subscriptions.update_async(
        subscription.id, {"cancel_at_period_end": False, "pause_collection": ""}
    )
    assert (cleared.cancel_at, cleared.pause_collection) == (None, None)


async def test_a_cancelled_subscription_is_listed_only_when_asked_for(sdk: stripe.StripeClient) -> None:
    customer, subscription = await subscribed(sdk)
    cancelled = await sdk.v1.subscriptions.cancel_async(subscription.id)
    assert cancelled.status == "canceled"
    assert cancelled.ended_at
    listed = [
        (await sdk.v1.subscriptions.list_async({"customer": customer.id, "status": status})).data
        for status in ("all", "canceled", "active")
    ]
    assert [len(found) for found in listed] == [1, 1, 0]
    assert (await sdk.v1.subscriptions.list_async({"customer": customer.id})).data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
        await sdk.v1.subscriptions.cancel_async(subscription.id)


async def test_lists_are_paged_newest_first_without_loss(sdk: stripe.StripeClient) -> None:
    made = [(await sdk.v1.customers.create_async({"name": str(n)})).id for n in range(5)]
    first = await sdk.v1.customers.list_async({"limit": 2})
    assert ([c.id for c in first.data], first.has_more) == (made[:-3:-1], True)
    everyone = [customer.id async for customer in first.auto_paging_iter()]
    assert everyone == list(reversed(made))
    before = await sdk.v1.customers.list_async({"limit": 2, "ending_before": made[1]})
    assert [c.id for c in before.data] == [made[3], made[2]]


@pytest.mark.parametrize(
    "status",
    ["incomplete", "incomplete_expired", "trialing", "active", "past_due", "canceled", "unpaid", "paused"],
)
async def test_every_status_can_be_set(sdk: stripe.StripeClient, control: httpx.AsyncClient, status: str) -> None:
    _, subscription = await subscribed(sdk, trial_period_days=1 if status == "active" else 0)
    reply = await control.put(f"/subscriptions/{subscription.id}", json={"status": status})
    assert reply.status_code == 200
    assert (await sdk.v1.subscriptions.retrieve_async(subscription.id)).status == status


async def test_a_paused_subscription_tells_its_reason_and_resumes(
    sdk: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    _, subscription = await subscribed(sdk)
    await control.put(f"/subscriptions/{subscription.id}", json={"pause_reason": "final_payment_failure"})
    paused = await sdk.v1.subscriptions.retrieve_async(subscription.id)
    assert paused.status == "paused"
    assert paused.status_details
    assert paused.status_details.paused.subscription.type == "final_payment_failure"
    assert (await sdk.v1.subscriptions.resume_async(subscription.id)).status == "active"
    assert (await sdk.v1.subscriptions.retrieve_async(subscription.id)).status_details is None


async def test_a_failed_renewal_is_past_due_with_an_open_invoice(
    sdk: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    _, subscription = await subscribed(sdk)
    end = subscription["items"].data[0].current_period_end
    await control.post(f"/subscriptions/{subscription.id}/renew", json={"outcome": "failed"})
    late = await sdk.v1.subscriptions.retrieve_async(subscription.id, {"expand": ["latest_invoice"]})
    assert (late.status, late["items"].data[0].current_period_start) == ("past_due", end)
    assert isinstance(late.latest_invoice, stripe.Invoice)
    assert late.latest_invoice.status == "open"
    assert (await event_types(sdk))[-2:] == ["invoice.payment_failed", "customer.subscription.updated"]


async def test_checkout_makes_customer_and_subscription(sdk: stripe.StripeClient, control: httpx.AsyncClient) -> None:
    session = await sdk.v1.checkout.sessions.create_async(
        {
            "mode": "subscription",
            "line_items": [{"price": "price_parley_pro", "quantity": 1}],
            "success_url": "http://shop/{CHECKOUT_SESSION_ID}",
            "client_reference_id": "acct_1",
            "subscription_data": {"metadata": {"parley_account_id": "acct_1"}},
        }
    )
    assert session.id.startswith("cs_test_")
    assert (session.status, session.payment_status, session.amount_total) == ("open", "unpaid", 2900)
    await control.post(f"/checkout/{session.id}/complete", json={"payment_status": "unpaid"})
    unpaid = await sdk.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["subscription"]})
    assert (unpaid.status, unpaid.payment_status) == ("complete", "unpaid")
    assert isinstance(unpaid.subscription, stripe.Subscription)
    assert unpaid.subscription.status == "incomplete"
    assert unpaid.subscription.metadata.to_dict() == {"parley_account_id": "acct_1"}
    await control.post(f"/checkout/{session.id}/settle", json={"succeeded": True})
    assert (await sdk.v1.subscriptions.retrieve_async(unpaid.subscription.id)).status == "active"
    types = await event_types(sdk)
    assert types.index("checkout.session.completed") < types.index("checkout.session.async_payment_succeeded")


async def test_a_person_can_pay_on_the_checkout_page(sdk: stripe.StripeClient, raw: httpx.AsyncClient) -> None:
    line: Any = {"price": "price_parley_basic", "quantity": 1}
    session = await sdk.v1.checkout.sessions.create_async(
        {"mode": "subscription", "line_items": [line], "success_url": "http://shop/done?s={CHECKOUT_SESSION_ID}"}
    )
    assert session.url
    assert "9.00 usd" in (await raw.get(session.url)).text
    paid = await raw.post(session.url, data={"action": "pay"})
    assert (paid.status_code, paid.headers["location"]) == (303, f"http://shop/done?s={session.id}")
    assert (await sdk.v1.checkout.sessions.retrieve_async(session.id)).payment_status == "paid"


async def test_the_portal_gives_a_url(sdk: stripe.StripeClient, raw: httpx.AsyncClient) -> None:
    customer, subscription = await subscribed(sdk)
    session = await sdk.v1.billing_portal.sessions.create_async({"customer": customer.id, "return_url": "http://shop"})
    assert subscription.id in (await raw.get(session.url)).text


async def test_entitlements_follow_the_products_and_are_paged(
    sdk: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    customer, subscription = await subscribed(sdk)

    async def keys(limit: int = 100) -> list[str]:
        found = await sdk.v1.entitlements.active_entitlements.list_async({"customer": customer.id, "limit": limit})
        return [entitlement.lookup_key async for entitlement in found.auto_paging_iter()]

    assert await keys() == ["chat", "priority"]
    many = [f"feature-{n:02d}" for n in range(25)]
    await control.put(f"/customers/{customer.id}/entitlements", json={"lookup_keys": many})
    assert await keys(limit=10) == many
    summary = (await sdk.v1.events.list_async({"limit": 1})).data[0]
    assert summary.type == "entitlements.active_entitlement_summary.updated"
    carried = summary.data.object.entitlements
    assert (len(carried.data), carried.has_more) == (10, True)
    await control.put(f"/customers/{customer.id}/entitlements", json={"lookup_keys": None})
    await sdk.v1.subscriptions.cancel_async(subscription.id)
    assert await keys() == []


async def test_a_repeated_idempotency_key_changes_nothing(sdk: stripe.StripeClient, raw: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "key-1"}
    first, again = [await raw.post("/v1/customers", data={"name": "Ann"}, headers=headers) for _ in range(2)]
    other = await raw.post("/v1/customers", data={"name": "Bob"}, headers=headers)
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, other.json()["error"]["type"]) == (400, "idempotency_error")
    assert len((await sdk.v1.customers.list_async()).data) == 1


async def test_a_reply_lost_after_the_change_is_found_again_by_its_key(
    process: Standin, sdk: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    rule = {"match": {"method": "POST", "path": "/v1/customers"}, "steps": [{"drop": True, "when": "after"}]}
    await control.post("/faults", json={"rules": [rule]})
    http = stripe.AIOHTTPClient(timeout=60)
    retrying = stripe.StripeClient(
        "sk_test_x", http_client=http, max_network_retries=1, base_addresses={"api": process.url}
    )
    customer = await retrying.v1.customers.create_async({"name": "Ann"})
    await http.close_async()  # type: ignore[no-untyped-call]
    assert [c.id for c in (await sdk.v1.customers.list_async()).data] == [customer.id]
    calls = (await control.get("/calls", params={"method": "POST"})).json()["calls"]
    assert [call["replayed"] for call in calls] == [False, True]


async def test_a_key_in_use_conflicts_and_a_remembered_500_is_replayed(
    raw: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    async def create(key: str) -> httpx.Response:
        return await raw.post("/v1/customers", data={"name": "Ann"}, headers={"Idempotency-Key": key})

    await control.put("/gates/g", json={"match": {"path": "/v1/customers"}})
    first = asyncio.create_task(create("key-1"))
    assert (await control.post("/await", json=UNTIL_HELD)).status_code == 200
    second = await create("key-1")
    assert (second.status_code, second.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    await control.delete("/gates/g")
    assert (await first).json() == (await create("key-1")).json()
    await control.post("/faults", json={"rules": [{"steps": [{"status": 500, "remembered": True}, {"status": 503}]}]})
    assert [(await create("key-2")).status_code for _ in range(3)] == [500, 503, 500]
    assert [(await create(key)).status_code for key in ("key-2", "key-3")] == [500, 200]


async def test_errors_are_stripe_s(sdk: stripe.StripeClient, raw: httpx.AsyncClient) -> None:
    with pytest.raises(stripe.InvalidRequestError) as missing:
        await sdk.v1.subscriptions.retrieve_async("sub_none")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")
    assert missing.value.request_id
    with pytest.raises(stripe.InvalidRequestError) as lacking:
        await sdk.v1.subscriptions.create_async({"items": [{"price": "price_parley_pro"}]})
    assert (lacking.value.http_status, lacking.value.param) == (400, "customer")
    assert (await raw.get("/v1/customers", headers={"Authorization": ""})).status_code == 401
    assert (await raw.get("/v1/unknown")).json()["error"]["type"] == "invalid_request_error"


async def test_api_faults_come_as_scripted(sdk: stripe.StripeClient, control: httpx.AsyncClient) -> None:
    _, subscription = await subscribed(sdk)
    # Two drops: aiohttp itself repeats a GET once when a connection it had kept open is lost.
    steps = [{"status": 500}, {"status": 429}, {"drop": True}, {"drop": True}, {"latency_ms": 30}]
    await control.post("/faults", json={"rules": [{"match": {"path": "/v1/subscriptions/*"}, "steps": steps}]})
    for error in (stripe.APIError, stripe.RateLimitError, stripe.APIConnectionError):
        with pytest.raises(error):
            await sdk.v1.subscriptions.retrieve_async(subscription.id)
    assert (await sdk.v1.subscriptions.retrieve_async(subscription.id)).id == subscription.id
    calls = (await control.get("/calls", params={"path": "/v1/subscriptions/*"})).json()["calls"]
    assert [call["status"] for call in calls] == [500, 429, None, None, 200]
    assert calls[-1]["ended_at"] - calls[-1]["arrived_at"] >= 0.029


async def test_a_gate_after_the_read_holds_a_reply_that_is_stale_when_it_leaves(
    sdk: stripe.StripeClient, control: httpx.AsyncClient
) -> None:
    _, subscription = await subscribed(sdk)
    await control.put("/gates/late", json={})
    rule = {"match": {"method": "GET", "path": "/v1/subscriptions/*"}, "steps": [{"gate_after": "late"}]}
    await control.post("/faults", json={"rules": [rule]})
    reading = asyncio.create_task(sdk.v1.subscriptions.retrieve_async(subscription.id))
    assert (await control.post("/await", json=UNTIL_HELD)).status_code == 200
    await sdk.v1.subscriptions.cancel_async(subscription.id)
    await control.delete("/gates/late")
    assert (await reading).status == "active"
    assert (await sdk.v1.subscriptions.retrieve_async(subscription.id)).status == "canceled"


async def test_old_shapes_are_rendered_on_demand(
    sdk: stripe.StripeClient, raw: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    _, subscription = await subscribed(sdk)
    path = f"/v1/subscriptions/{subscription.id}"
    asked = (await raw.get(path, headers={"Stripe-Version": "2025-02-24.acacia"})).json()
    await control.put("/versions", json={"api": "2025-02-24.acacia", "event_label": "2020-01-01"})
    forced = (await raw.get(path)).json()
    assert asked == forced
    end = subscription["items"].data[0].current_period_end
    assert forced["current_period_end"] == end
    assert "current_period_end" not in forced["items"]["data"][0]
    invoice = (await raw.get(f"/v1/invoices/{forced['latest_invoice']}")).json()
    assert (invoice["subscription"], invoice["paid"]) == (subscription.id, True)
    event = (await raw.get("/v1/events", params={"type": "customer.subscription.created"})).json()["data"][0]
    assert event["api_version"] == "2020-01-01"
    assert event["data"]["object"]["items"]["data"][0]["current_period_end"] == end
