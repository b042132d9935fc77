"""One subscription in the shapes of three API versions, and what is remembered from one look to the next."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from services.billing.subscription import (
    NotASubscription,
    PriceLine,
    following,
    is_news,
    read_subscription,
    tombstone,
)
from tests.unit.billing.facts import DAY, HOUR, NOW, line, subscription

START, END, CREATED = 1_795_000_000, 1_797_600_000, 1_790_000_000


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def acacia(**fields: Any) -> dict[str, Any]:
    """2025-02-24: the period belongs to the subscription."""
    item = {"id": "si_1", "object": "subscription_item", "price": {"id": "price_pro"}, "plan": {"id": "price_pro"}}
    return {
        "id": "sub_1",
        "object": "subscription",
        "customer": "cus_1",
        "status": "active",
        "livemode": False,
        "created": CREATED,
        "current_period_start": START,
        "current_period_end": END,
        "items": {"object": "list", "data": [item], "has_more": False},
        "cancel_at": None,
        "cancel_at_period_end": False,
        "pause_collection": None,
        "trial_end": None,
        "latest_invoice": "in_1",
        "discount": None,
        **fields,
    }


def basil(**fields: Any) -> dict[str, Any]:
    """2025-03-31: each item has a period of its own."""
    body = acacia(**fields)
    start, end = body.pop("current_period_start"), body.pop("current_period_end")
    body.pop("discount")
    body["items"]["data"][0] |= {"current_period_start": start, "current_period_end": end}
    return body


def endive(**fields: Any) -> dict[str, Any]:
    """2026-10-28: a pause has a reason, and a billing mode is told."""
    return {**basil(**fields), "status_details": None, "billing_mode": {"type": "flexible"}, "customer_account": None}


SHAPES = (acacia, basil, endive)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"status": "trialing", "trial_end": END},
        {"status": "past_due", "latest_invoice": {"id": "in_1", "created": START + 5}},
        {"status": "past_due"},
        {"cancel_at": END, "cancel_at_period_end": True},
        {"pause_collection": {"behavior": "void", "resumes_at": END}},
        {"customer": {"id": "cus_1", "object": "customer"}},
        {"status": "something_new"},
    ],
)
def test_the_same_subscription_gives_the_same_facts_in_every_version(fields: dict[str, Any]) -> None:
    first, second, third = (read_subscription(shape(**fields), fetched_at=NOW) for shape in SHAPES)
    assert first == second == third


def test_what_is_read_is_what_was_said() -> None:
    fact = read_subscription(endive(trial_end=END, cancel_at=END), fetched_at=NOW)
    assert fact.lines == (PriceLine("price_pro", at(START), at(END)),)
    assert (fact.customer_id, fact.livemode, fact.created) == ("cus_1", False, at(CREATED))
    assert (fact.trial_end, fact.cancel_at, fact.fetched_at) == (at(END), at(END), NOW)


def test_the_reason_of_a_pause_is_read_where_the_version_has_one() -> None:
    paused = endive(status="paused")
    paused["status_details"] = {
        "paused": {"type": "subscription", "subscription": {"type": "system"}, "transitioned_at": START}
    }
    assert read_subscription(paused, fetched_at=NOW).pause_reason == "system"
    assert read_subscription(basil(status="paused"), fetched_at=NOW).pause_reason is None


@pytest.mark.parametrize(
    ("invoice", "since"),
    [
        ({"id": "in_1", "created": START + 5, "status_transitions": {"finalized_at": START + 9}}, START + 9),
        ({"id": "in_1", "created": START + 5, "status_transitions": {"finalized_at": None}}, START + 5),
        ("in_1", START),
        (None, START),
    ],
)
def test_past_due_is_counted_from_stripes_own_times(invoice: object, since: int) -> None:
    fact = read_subscription(endive(status="past_due", latest_invoice=invoice), fetched_at=NOW)
    assert fact.past_due_since == at(since)


@pytest.mark.parametrize("broken", [None, "soon", 0, -5, True, 1.5, 10**12])
def test_a_time_that_is_none_is_missing_and_never_the_year_1970(broken: object) -> None:
    body = acacia(current_period_end=broken, trial_end=broken, created=broken)
    fact = read_subscription(body, fetched_at=NOW)
    assert (fact.period_end, fact.trial_end, fact.created) == (None, None, None)


@pytest.mark.parametrize("items", [None, [], {"data": None}, {"data": ["si_1", {"price": None}]}])
def test_items_that_are_none_leave_a_fact_without_prices(items: object) -> None:
    assert read_subscription(endive() | {"items": items}, fetched_at=NOW).lines == ()


@pytest.mark.parametrize("missing", ["id", "customer", "status"])
def test_what_has_no_name_owner_or_status_is_no_subscription(missing: str) -> None:
    with pytest.raises(NotASubscription):
        read_subscription(endive() | {missing: None}, fetched_at=NOW)


def test_the_grace_clock_starts_once_however_many_invoices_fail() -> None:
    first = subscription("past_due", past_due_since=NOW - 5 * DAY)
    later = subscription("past_due", past_due_since=NOW)
    assert following(first, later).past_due_since == NOW - 5 * DAY
    assert following(subscription("active"), later).past_due_since == NOW


def test_an_unknown_status_remembers_when_it_was_first_seen_and_what_was_before() -> None:
    known = subscription("trialing")
    seen = following(known, subscription("new", status_since=NOW))
    assert (seen.status_since, seen.last_known_status) == (NOW, "trialing")
    again = following(seen, subscription("new", status_since=NOW + DAY))
    assert (again.status_since, again.last_known_status) == (NOW, "trialing")
    other = following(again, subscription("newer", status_since=NOW + DAY))
    assert (other.status_since, other.last_known_status) == (NOW + DAY, "trialing")
    assert following(other, known) == known


def test_only_what_can_matter_is_news() -> None:
    before = subscription()
    assert is_news(None, before)
    assert not is_news(before, replace(before, fetched_at=before.fetched_at + HOUR))
    assert is_news(before, replace(before, status="canceled"))
    assert is_news(before, replace(before, fetched_at=before.fetched_at + DAY)), "a day old: confirmed"
    ending = subscription(lines=(line(end=NOW),))
    assert is_news(ending, replace(ending, fetched_at=NOW)), "seen again after its period ended"


def test_what_stripe_no_longer_knows_has_ended() -> None:
    gone = tombstone(subscription(), fetched_at=NOW)
    assert (gone.status, gone.fetched_at, gone.lines) == ("canceled", NOW, (line(),))
