"""Which object an event tells us to look at; what is no event is refused with what is missing."""

from typing import Any

import pytest

from services.billing.stripe_event import EventMalformed, parse_event


def snapshot(found: object, **fields: Any) -> dict[str, Any]:
    return {
        "id": "evt_1",
        "object": "event",
        "type": "customer.subscription.updated",
        "livemode": False,
        "api_version": "2026-10-28.endive",
        "data": {"object": found},
        **fields,
    }


@pytest.mark.parametrize(
    ("found", "customer_id", "subscription_id"),
    [
        ({"object": "subscription", "id": "sub_1", "customer": "cus_1"}, "cus_1", "sub_1"),
        ({"object": "subscription", "id": "sub_1", "customer": {"id": "cus_1"}}, "cus_1", "sub_1"),
        ({"object": "customer", "id": "cus_1"}, "cus_1", None),
        ({"object": "invoice", "id": "in_1", "customer": "cus_1", "subscription": "sub_1"}, "cus_1", None),
        ({"object": "checkout.session", "id": "cs_1", "customer": "cus_1"}, "cus_1", None),
        ({"object": "checkout.session", "id": "cs_1", "customer": None}, None, None),
        ({"object": "charge", "id": "ch_1", "customer": "cus_1"}, None, None),
        ({"object": "balance"}, None, None),
    ],
)
def test_an_event_names_the_customer_and_the_subscription_to_look_at(
    found: object, customer_id: str | None, subscription_id: str | None
) -> None:
    event = parse_event(snapshot(found), family="snapshot", raw=b"raw")
    assert (event.customer_id, event.subscription_id) == (customer_id, subscription_id)
    assert (event.event_id, event.livemode, event.api_version, event.raw) == (
        "evt_1",
        False,
        "2026-10-28.endive",
        b"raw",
    )


def test_a_thin_event_names_its_object_alone() -> None:
    thin = {
        "id": "evt_1",
        "object": "v2.core.event",
        "type": "v1.customer.subscription.active",
        "related_object": {"id": "sub_1", "type": "subscription", "url": "/v1/subscriptions/sub_1"},
    }
    event = parse_event(thin, family="thin", raw=b"raw")
    assert (event.customer_id, event.subscription_id) == (None, "sub_1")


@pytest.mark.parametrize(
    "document",
    [
        [],
        "event",
        None,
        {},
        snapshot({}, object="v2.core.event"),
        snapshot({}, id=None),
        snapshot({}, id="evt_\x00"),
        snapshot({}, id="e" * 256),
        snapshot({}, type=7),
        snapshot("sub_1"),
        {"id": "evt_1", "object": "event", "type": "ping"},
    ],
)
def test_what_is_no_event_is_refused(document: object) -> None:
    with pytest.raises(EventMalformed):
        parse_event(document, family="snapshot", raw=b"raw")
