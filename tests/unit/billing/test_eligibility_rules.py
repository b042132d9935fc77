"""What stands above and below the table: operators, several subscriptions, plans, models and quota."""

from dataclasses import replace
from datetime import datetime

import pytest

from services.billing.eligibility import Ask, Credit, Overlay
from services.billing.policy import parse_policy
from services.billing.reasons import Reason
from services.billing.subscription import SubscriptionFact
from tests.unit.billing.facts import (
    DAY,
    HOUR,
    NOW,
    PERIOD_END,
    PERIOD_START,
    PLANS,
    POLICY,
    WITH_FREE,
    decided,
    line,
    subscription,
)

BLOCK = Overlay("block", NOW + DAY)
ALLOW = Overlay("allow", NOW + DAY)


def used(settled: int = 0, held: int = 0, granted: int | None = 1000) -> dict[datetime, Credit]:
    return {PERIOD_START: Credit(granted, settled, held)}


def test_an_operators_block_beats_everything_and_ends_when_it_says() -> None:
    decision = decided(subscription(), overlays=(ALLOW, BLOCK))
    assert (decision.verdict, decision.reasons, decision.action_hint) == (
        "DENY",
        (Reason.MANUAL_BLOCK,),
        "contact_support",
    )
    assert decision.valid_until == NOW + DAY
    assert decided(subscription(), overlays=(BLOCK,), now=NOW + DAY).verdict == "ALLOW"


def test_an_operators_allow_skips_the_subscription_but_not_its_quota() -> None:
    unpaid = subscription("unpaid")
    decision = decided(unpaid, overlays=(ALLOW,))
    assert (decision.verdict, decision.reasons, decision.plan) == (
        "ALLOW",
        (Reason.MANUAL_ALLOW, Reason.UNPAID),
        "pro",
    )
    assert decision.valid_until == NOW + DAY
    over = decided(unpaid, overlays=(ALLOW,), usage=used(1000))
    assert (over.verdict, over.reasons[0]) == ("DENY", Reason.QUOTA_EXHAUSTED)


def test_an_allow_that_names_a_plan_gives_its_quota_for_the_calendar_month() -> None:
    decision = decided(overlays=(Overlay("allow", NOW + DAY, "basic"),))
    assert (decision.verdict, decision.plan, decision.remaining) == ("ALLOW", "basic", 100)
    assert decision.period is not None
    assert decision.period.start.day == 1


def test_a_customer_that_was_deleted_is_denied_whatever_its_subscriptions_say() -> None:
    decision = decided(subscription(), customer_deleted=True)
    assert (decision.verdict, decision.reasons) == ("DENY", (Reason.CUSTOMER_DELETED,))


def test_the_best_of_several_subscriptions_decides_and_the_others_are_recorded() -> None:
    ended = subscription("canceled", subscription_id="sub_0")
    overdue = subscription("past_due", subscription_id="sub_2", past_due_since=NOW - DAY)
    decision = decided(ended, subscription(), overdue)
    assert decision.verdict == "ALLOW"
    assert decision.reasons == (Reason.ACTIVE, Reason.CANCELED, Reason.PAST_DUE_GRACE)
    assert decision.valid_until == NOW + 6 * DAY, "the earliest instant at which any of them changes"


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (subscription("unpaid"), subscription("hibernating", status_since=NOW)),
        (subscription("hibernating", status_since=NOW), subscription("past_due", past_due_since=NOW)),
        (subscription("past_due", past_due_since=NOW), subscription("trialing", trial_end=NOW + DAY)),
        (subscription("canceled"), subscription("unpaid")),
        (subscription(lines=(line("price_basic"),)), subscription(lines=(line("price_endless"),))),
    ],
)
def test_the_better_one_decides_in_whatever_order_they_come(worse: SubscriptionFact, better: SubscriptionFact) -> None:
    first, second = replace(worse, subscription_id="sub_1"), replace(better, subscription_id="sub_2")
    together, alone = decided(first, second), decided(second)
    assert together == decided(second, first)
    assert (together.verdict, together.reasons[0], together.plan) == (alone.verdict, alone.reasons[0], alone.plan)


def test_a_subscription_with_several_prices_gives_the_most_generous_plan() -> None:
    decision = decided(subscription(lines=(line("price_basic"), line("price_pro"), line("price_unrelated"))))
    assert (decision.plan, decision.remaining) == ("pro", 1000)


def test_a_model_outside_the_plan_is_denied_and_one_inside_is_not() -> None:
    basic = subscription(lines=(line("price_basic"),))
    denied = decided(basic, asked=Ask(1, "clever"))
    assert (denied.verdict, denied.reasons, denied.action_hint) == (
        "DENY",
        (Reason.MODEL_NOT_IN_PLAN, Reason.ACTIVE),
        "upgrade",
    )
    assert decided(basic, asked=Ask(1, "default")).verdict == "ALLOW"
    assert decided(subscription(), asked=Ask(1, "clever")).verdict == "ALLOW", "a plan that names no models has all"


def test_the_quota_counts_what_is_settled_and_what_is_held() -> None:
    last = decided(subscription(), usage=used(600, 300), asked=Ask(100))
    assert (last.verdict, last.remaining, last.held_tokens) == ("ALLOW", 100, 100)
    over = decided(subscription(), usage=used(600, 300), asked=Ask(101))
    assert (over.verdict, over.reasons, over.remaining, over.action_hint) == (
        "DENY",
        (Reason.QUOTA_EXHAUSTED, Reason.ACTIVE),
        100,
        "upgrade",
    )


def test_what_an_earlier_period_used_is_of_no_account() -> None:
    assert decided(subscription(), usage={PERIOD_START - 30 * DAY: Credit(1000, 1000, 0)}).remaining == 1000


def test_a_plan_without_a_quota_holds_what_is_asked_and_has_nothing_remaining_to_tell() -> None:
    decision = decided(subscription(lines=(line("price_endless"),)), usage=used(10**9, granted=None), asked=Ask(5))
    assert (decision.verdict, decision.remaining, decision.held_tokens) == ("ALLOW", None, 5)


def test_overage_is_permitted_where_the_plan_bills_it_and_only_while_it_is_paid() -> None:
    metered = (line("price_metered"),)
    decision = decided(subscription(lines=metered), usage=used(90, granted=100), asked=Ask(50))
    assert (decision.verdict, decision.reasons[0]) == ("ALLOW", Reason.OVERAGE_PERMITTED)
    assert (decision.remaining, decision.held_tokens) == (10, 10)
    overdue = subscription("past_due", lines=metered, past_due_since=NOW)
    assert decided(overdue, usage=used(90, granted=100), asked=Ask(50)).verdict == "DENY"


def test_the_hint_of_a_grace_is_to_pay() -> None:
    decision = decided(subscription("past_due", past_due_since=NOW))
    assert (decision.verdict, decision.action_hint) == ("ALLOW_GRACE", "update_payment_method")


def test_the_decision_in_the_words_of_the_contract_is_complete() -> None:
    eligibility = decided(subscription(lines=(line("price_basic"),))).eligibility()
    assert eligibility.model_dump() == {
        "decision": "ALLOW",
        "reasons": ("active",),
        "plan": "basic",
        "models": ("default",),
        "valid_until": PERIOD_END + 6 * HOUR,
        "remaining": 100,
        "action_hint": None,
    }


def test_a_free_account_whose_month_is_used_up_may_upgrade() -> None:
    month = NOW.replace(day=1, hour=0)
    decision = decided(policy=WITH_FREE, usage={month: Credit(10, 10, 0)})
    assert (decision.verdict, decision.reasons[0], decision.action_hint) == (
        "DENY",
        Reason.QUOTA_EXHAUSTED,
        "upgrade",
    )


def test_policies_that_differ_in_anything_have_different_versions() -> None:
    assert POLICY.version != WITH_FREE.version
    assert POLICY.version == parse_policy(PLANS, livemode=False).version
    assert POLICY.version != parse_policy(PLANS, livemode=True).version
