"""What Stripe posts: stored once before the 200, or refused with the code of the first thing that is wrong."""

import asyncio
import json
import time
from typing import Any

from stripe import WebhookSignature

from tests.component.billing.driver import SECRETS, Billing, event_of

CHARGE = {"object": "charge", "id": "ch_1", "customer": "cus_1"}


async def test_an_event_is_stored_with_its_raw_body_and_answered(billing: Billing) -> None:
    event = event_of(CHARGE, "charge.succeeded")
    raw = json.dumps(event, indent=3).encode()
    assert await billing.webhook(raw) == (200, {"received": True, "duplicate": False})
    row = await billing.ended(event["id"])
    assert (row["raw"], row["type"], row["secret_index"]) == (raw, "charge.succeeded", 0)
    assert (row["state"], row["reason"]) == ("ignored", "type_not_used")


async def test_deliveries_of_one_event_at_once_leave_one_row(billing: Billing) -> None:
    event = event_of(CHARGE)
    answers = await asyncio.gather(*(billing.webhook(event) for _ in range(10)))
    assert [status for status, _ in answers] == [200] * 10
    assert sorted(body["duplicate"] for _, body in answers) == [False] + [True] * 9
    assert await billing.events_stored() == 1


async def test_any_configured_secret_verifies(billing: Billing) -> None:
    event = event_of(CHARGE)
    assert (await billing.webhook(event, secret=SECRETS[1]))[0] == 200
    assert (await billing.ended(event["id"]))["secret_index"] == 1


WRONG: tuple[tuple[Any, dict[str, Any], str], ...] = (
    (event_of(CHARGE), {"header": ""}, "signature_missing"),
    (event_of(CHARGE), {"secret": "whsec_of_somebody_else"}, "signature_invalid"),
    (event_of(CHARGE), {"header": "nonsense"}, "signature_invalid"),
    (event_of(CHARGE), {"header": f"t={int(time.time())},v1=00"}, "signature_invalid"),
    (event_of(CHARGE), {"header": f"t={int(time.time())},v0=00"}, "signature_invalid"),
    (event_of(CHARGE), {"age_seconds": 330}, "timestamp_out_of_bounds"),
    (event_of(CHARGE), {"age_seconds": -330}, "timestamp_out_of_bounds"),
    (event_of(CHARGE), {"age_seconds": -365 * 86400}, "timestamp_out_of_bounds"),
    (b"\xff\xfe", {}, "body_not_utf8"),
    (b"{", {}, "body_not_json"),
    (b"", {}, "body_not_json"),
    (b"[]", {}, "event_malformed"),
    (b"7", {}, "event_malformed"),
    ({"object": "event"}, {}, "event_malformed"),
    (event_of(CHARGE, id="evt\x00"), {}, "event_malformed"),
    (event_of(CHARGE, type=""), {}, "event_malformed"),
    (event_of(CHARGE, object="v2.core.event"), {}, "event_malformed"),
    (event_of(CHARGE, data=None), {}, "event_malformed"),
)


async def test_what_is_wrong_has_a_code_and_leaves_nothing(billing: Billing) -> None:
    answers = [await billing.webhook(body, **how) for body, how, _ in WRONG]
    assert [(status, problem["code"]) for status, problem in answers] == [(400, code) for _, _, code in WRONG]
    assert await billing.events_stored() == 0


async def test_a_body_that_was_changed_on_its_way_is_refused(billing: Billing) -> None:
    raw = json.dumps(event_of(CHARGE)).encode()
    header = WebhookSignature.generate_signature_header(raw.decode(), SECRETS[0])
    status, problem = await billing.webhook(raw.replace(b"ch_1", b"ch_2"), header=header)
    assert (status, problem["code"]) == (400, "signature_invalid")


async def test_a_body_beyond_the_limit_is_refused(billing: Billing) -> None:
    status, problem = await billing.webhook(b" " * (1024 * 1024 + 1))
    assert (status, problem["code"]) == (413, "body_too_large")
    assert await billing.events_stored() == 0


async def test_a_timestamp_of_five_minutes_ago_is_just_accepted(billing: Billing) -> None:
    assert (await billing.webhook(event_of(CHARGE), age_seconds=280))[0] == 200


async def test_the_other_mode_is_kept_and_ignored(billing: Billing) -> None:
    event = event_of({"object": "customer", "id": "cus_1"}, livemode=True)
    assert (await billing.webhook(event))[0] == 200
    row = await billing.ended(event["id"])
    assert (row["state"], row["reason"]) == ("ignored", "livemode_mismatch")


async def test_a_thin_event_has_a_route_of_its_own(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    await billing.control.change_subscription(made["id"], status="unpaid", emit=False)
    thin = {
        "id": "evt_test_thin",
        "object": "v2.core.event",
        "type": "v1.customer.subscription.unpaid",
        "livemode": False,
        "related_object": {"id": made["id"], "type": "subscription", "url": f"/v1/subscriptions/{made['id']}"},
    }
    assert (await billing.webhook(thin))[1]["code"] == "event_malformed"
    assert (await billing.webhook(thin, path="/webhooks/stripe/thin"))[0] == 200
    await billing.decides(account_id, "DENY", "unpaid")


async def test_a_customer_of_nobody_is_kept_and_ignored(billing: Billing) -> None:
    customer_id = await billing.customer(None)
    await billing.settled()
    row = await billing.database.fetchrow("SELECT * FROM stripe_events WHERE customer_id = $1", customer_id)
    assert row is not None
    assert (row["state"], row["reason"]) == ("ignored", "customer_without_account")
    assert await billing.database.fetchval("SELECT count(*) FROM customers") == 0
