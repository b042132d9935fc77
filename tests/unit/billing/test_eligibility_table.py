"""The table of Stripe's statuses, a row for each test case: decision, deciding reason, end and hint."""

from datetime import datetime

import pytest

from services.billing.eligibility import Ask
from services.billing.policy import Policy
from services.billing.reasons import ACTION_HINTS, Reason
from services.billing.subscription import SubscriptionFact
from shared.contracts.billing import Verdict
from tests.unit.billing.facts import DAY, HOUR, NOW, PERIOD_END, POLICY, WITH_FREE, decided, line, subscription

TRIAL_END = NOW + 3 * DAY
STALE = NOW - 73 * HOUR

Row = tuple[SubscriptionFact, Verdict, Reason, datetime | None]

ROWS: dict[str, Row] = {
    "incomplete": (
        subscription("incomplete", created=NOW - 3 * HOUR),
        "DENY",
        Reason.FIRST_PAYMENT_PENDING,
        NOW + 20 * HOUR,
    ),
    "incomplete, 23 hours old": (
        subscription("incomplete", created=NOW - 23 * HOUR),
        "DENY",
        Reason.FIRST_PAYMENT_EXPIRED,
        None,
    ),
    "incomplete_expired": (subscription("incomplete_expired"), "DENY", Reason.FIRST_PAYMENT_EXPIRED, None),
    "trialing": (subscription("trialing", trial_end=TRIAL_END), "ALLOW", Reason.TRIAL_ACTIVE, TRIAL_END),
    "trialing, cancelled before its end": (
        subscription("trialing", trial_end=TRIAL_END, cancel_at=NOW + DAY),
        "ALLOW",
        Reason.TRIAL_ACTIVE,
        NOW + DAY,
    ),
    "trialing, past its end": (
        subscription("trialing", trial_end=NOW - HOUR),
        "ALLOW",
        Reason.TRIAL_END_UNCONFIRMED,
        NOW + 71 * HOUR,
    ),
    "trialing, long past its end": (
        subscription("trialing", trial_end=NOW - 72 * HOUR),
        "INDETERMINATE",
        Reason.STATE_STALE,
        None,
    ),
    "active": (subscription(), "ALLOW", Reason.ACTIVE, PERIOD_END + 6 * HOUR),
    "active, its renewal late by less than the slack": (
        subscription(lines=(line(end=NOW - 5 * HOUR),)),
        "ALLOW",
        Reason.ACTIVE,
        NOW + HOUR,
    ),
    "active, its renewal unconfirmed": (
        subscription(lines=(line(end=NOW - 6 * HOUR),)),
        "ALLOW",
        Reason.PERIOD_UNCONFIRMED,
        NOW + 71 * HOUR,
    ),
    "active, nobody looked for 72 hours": (
        subscription(lines=(line(end=NOW - 6 * HOUR),), fetched_at=NOW - 72 * HOUR),
        "INDETERMINATE",
        Reason.STATE_STALE,
        None,
    ),
    "active, to be cancelled at the period's end": (
        subscription(cancel_at_period_end=True),
        "ALLOW",
        Reason.CANCEL_SCHEDULED,
        PERIOD_END,
    ),
    "active, to be cancelled at an instant": (
        subscription(cancel_at=NOW + DAY),
        "ALLOW",
        Reason.CANCEL_SCHEDULED,
        NOW + DAY,
    ),
    "active, its cancellation due and unconfirmed": (
        subscription(cancel_at=NOW - HOUR / 2),
        "INDETERMINATE",
        Reason.STATE_STALE,
        None,
    ),
    "active, seen after its cancellation was due": (
        subscription(cancel_at=NOW - 2 * HOUR),
        "ALLOW",
        Reason.PERIOD_UNCONFIRMED,
        NOW + 71 * HOUR,
    ),
    "active, invoices kept as drafts": (
        subscription(collection_pause="keep_as_draft", collection_resumes_at=NOW + DAY),
        "ALLOW",
        Reason.COLLECTION_PAUSED,
        NOW + DAY,
    ),
    "active, invoices uncollectible": (
        subscription(collection_pause="mark_uncollectible"),
        "ALLOW",
        Reason.COLLECTION_PAUSED,
        PERIOD_END + 6 * HOUR,
    ),
    "active, collection resumed since": (
        subscription(collection_pause="void", collection_resumes_at=NOW - HOUR),
        "ALLOW",
        Reason.ACTIVE,
        PERIOD_END + 6 * HOUR,
    ),
    "active, invoices void": (
        subscription(collection_pause="void"),
        "ALLOW",
        Reason.COLLECTION_VOID,
        PERIOD_END,
    ),
    "active, invoices void and the period over": (
        subscription(collection_pause="void", lines=(line(end=NOW),)),
        "DENY",
        Reason.COLLECTION_VOID,
        None,
    ),
    "past_due, within grace": (
        subscription("past_due", past_due_since=NOW - 6 * DAY),
        "ALLOW_GRACE",
        Reason.PAST_DUE_GRACE,
        NOW + DAY,
    ),
    "past_due, grace over": (
        subscription("past_due", past_due_since=NOW - 7 * DAY),
        "DENY",
        Reason.PAST_DUE_GRACE_EXPIRED,
        None,
    ),
    "unpaid": (subscription("unpaid"), "DENY", Reason.UNPAID, None),
    "paused": (subscription("paused"), "DENY", Reason.PAUSED, None),
    "paused for a reason nobody knows": (subscription("paused", pause_reason="moon"), "DENY", Reason.PAUSED, None),
    "paused, trial without payment method": (
        subscription("paused", pause_reason="trial_end_without_payment_method"),
        "DENY",
        Reason.PAUSED_TRIAL_NO_PAYMENT_METHOD,
        None,
    ),
    "paused, first payment failed": (
        subscription("paused", pause_reason="first_payment_failure"),
        "DENY",
        Reason.PAUSED_PAYMENT_FAILURE,
        None,
    ),
    "paused, last payment failed": (
        subscription("paused", pause_reason="final_payment_failure"),
        "DENY",
        Reason.PAUSED_PAYMENT_EXHAUSTED,
        None,
    ),
    "paused on request": (
        subscription("paused", pause_reason="pause_requested"),
        "DENY",
        Reason.PAUSED_REQUESTED,
        None,
    ),
    "paused by the system": (
        subscription("paused", pause_reason="system"),
        "DENY",
        Reason.PAUSED_SYSTEM,
        None,
    ),
    "canceled": (subscription("canceled"), "DENY", Reason.CANCELED, None),
    "a status nobody knows": (
        subscription("hibernating", status_since=NOW - HOUR),
        "INDETERMINATE",
        Reason.UNKNOWN_STATUS,
        NOW + 23 * HOUR,
    ),
    "a status nobody knows, for a day": (
        subscription("hibernating", status_since=NOW - DAY),
        "INDETERMINATE",
        Reason.UNKNOWN_STATUS,
        None,
    ),
    "incomplete without its creation": (
        subscription("incomplete", created=None),
        "INDETERMINATE",
        Reason.FACT_INCOMPLETE,
        None,
    ),
    "trialing without its end": (subscription("trialing"), "INDETERMINATE", Reason.FACT_INCOMPLETE, None),
    "active without its period": (
        subscription(lines=(line(end=None),)),
        "INDETERMINATE",
        Reason.FACT_INCOMPLETE,
        None,
    ),
    "active, period without a start": (
        subscription(lines=(line(start=None),)),
        "INDETERMINATE",
        Reason.FACT_INCOMPLETE,
        None,
    ),
    "past_due without a since": (subscription("past_due"), "INDETERMINATE", Reason.FACT_INCOMPLETE, None),
    "active, a price of no plan": (
        subscription(lines=(line("price_elsewhere"),)),
        "DENY",
        Reason.PRICE_UNKNOWN,
        PERIOD_END + 6 * HOUR,
    ),
    "past_due, a price of no plan": (
        subscription("past_due", lines=(line("price_elsewhere"),), past_due_since=NOW),
        "DENY",
        Reason.PRICE_UNKNOWN,
        None,
    ),
    "active, a plan without the feature": (
        subscription(lines=(line("price_silent"),)),
        "DENY",
        Reason.FEATURE_NOT_ENTITLED,
        PERIOD_END + 6 * HOUR,
    ),
    "active in the other mode": (subscription(livemode=True), "DENY", Reason.MODE_MISMATCH, None),
    "active, its customer deleted": (subscription(customer_deleted=True), "DENY", Reason.CUSTOMER_DELETED, None),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_a_row_of_the_table_decides_as_it_says(row: Row) -> None:
    fact, verdict, reason, valid_until = row
    decision = decided(fact)
    assert (decision.verdict, decision.reasons[0], decision.valid_until) == (verdict, reason, valid_until)
    assert decision.action_hint == ACTION_HINTS.get(reason)


def test_no_subscription_is_denied_with_the_hint_to_subscribe() -> None:
    decision = decided()
    assert (decision.verdict, decision.reasons, decision.action_hint) == (
        "DENY",
        (Reason.NO_SUBSCRIPTION,),
        "subscribe",
    )


@pytest.mark.parametrize("status", ["canceled", "incomplete", "incomplete_expired"])
def test_whoever_has_nothing_running_falls_back_to_the_free_plan(status: str) -> None:
    for decision in (decided(policy=WITH_FREE), decided(subscription(status), policy=WITH_FREE)):
        assert (decision.verdict, decision.reasons[0], decision.plan) == ("ALLOW", Reason.FREE_PLAN, "free")
        assert decision.remaining == 10
        assert decision.period is not None
        assert (decision.period.start.day, decision.period.end.month) == (1, 12)


@pytest.mark.parametrize("status", ["unpaid", "paused"])
def test_the_free_plan_is_no_way_around_a_debt_or_a_pause(status: str) -> None:
    assert decided(subscription(status), policy=WITH_FREE).verdict == "DENY"


def test_an_unknown_status_keeps_for_a_day_what_the_one_before_permitted_where_that_is_asked_for() -> None:
    fact = subscription("hibernating", status_since=NOW - HOUR, last_known_status="active")
    assert decided(fact).verdict == "INDETERMINATE"
    degraded = decided(fact, asked=Ask(degraded=True))
    assert (degraded.verdict, degraded.reasons) == ("ALLOW", (Reason.UNKNOWN_STATUS, Reason.ACTIVE))
    assert degraded.valid_until == NOW + 23 * HOUR
    later = decided(fact, now=NOW + DAY, asked=Ask(degraded=True))
    assert later.verdict == "INDETERMINATE"


def test_the_grace_is_the_plans_own() -> None:
    short: Policy = POLICY.model_copy(
        update={"plans": {"pro": POLICY.plans["pro"].model_copy(update={"past_due_grace_days": 0})}}
    )
    assert decided(subscription("past_due", past_due_since=NOW), policy=short).verdict == "DENY"
