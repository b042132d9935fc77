"""decide() over everything that can be: total, pure, closed in its reasons, and stable until `valid_until`."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.billing.eligibility import AccountFacts, Ask, Credit, Overlay, calendar_month, decide
from services.billing.payment import DISPUTE_REASONS, PaymentFact
from services.billing.policy import Policy
from services.billing.reasons import Reason
from services.billing.subscription import KNOWN_STATUSES, PriceLine, SubscriptionFact
from tests.unit.billing.facts import NOW, POLICY, WITH_FREE
from tests.unit.billing.test_eligibility_table import ROWS
from tests.unit.billing.test_payments import ROWS as PAYMENT_ROWS

FACTS = TypeAdapter(AccountFacts)

instants = st.integers(-90 * 24, 90 * 24).map(lambda hours: NOW + timedelta(hours=hours))
maybe_instants = st.none() | instants
prices = st.sampled_from(["price_pro", "price_basic", "price_metered", "price_endless", "price_silent", "price_other"])
lines = st.builds(PriceLine, prices, maybe_instants, maybe_instants)

subscriptions = st.builds(
    SubscriptionFact,
    subscription_id=st.sampled_from(["sub_1", "sub_2", "sub_3"]),
    customer_id=st.just("cus_1"),
    status=st.sampled_from([*sorted(KNOWN_STATUSES), "hibernating"]),
    livemode=st.sampled_from([False, False, False, None, True]),
    created=maybe_instants,
    lines=st.lists(lines, max_size=2).map(tuple),
    fetched_at=instants,
    trial_end=maybe_instants,
    cancel_at=maybe_instants,
    cancel_at_period_end=st.booleans(),
    collection_pause=st.sampled_from([None, None, "keep_as_draft", "mark_uncollectible", "void"]),
    collection_resumes_at=maybe_instants,
    pause_reason=st.sampled_from(
        [
            None,
            "trial_end_without_payment_method",
            "first_payment_failure",
            "final_payment_failure",
            "pause_requested",
            "system",
        ]
    ),
    past_due_since=maybe_instants,
    status_since=maybe_instants,
    last_known_status=st.none() | st.sampled_from(sorted(KNOWN_STATUSES)),
    customer_deleted=st.booleans(),
    latest_invoice_id=st.sampled_from([None, "in_1", "in_2"]),
)
payments = st.builds(
    PaymentFact,
    charge_id=st.sampled_from(["ch_1", "ch_2"]),
    invoice_id=st.sampled_from([None, "in_1", "in_2"]),
    livemode=st.sampled_from([False, None, True]),
    amount=st.integers(1, 100),
    refunded=st.integers(0, 100),
    dispute=st.none() | st.sampled_from([*DISPUTE_REASONS, "escalated"]),
    fraud_warning=st.booleans(),
)
overlays = st.builds(
    Overlay, st.sampled_from(["block", "allow"]), maybe_instants, st.sampled_from([None, "pro", "no_such_plan"])
)
facts_of_an_account = st.builds(
    AccountFacts,
    st.lists(subscriptions, max_size=3, unique_by=lambda fact: fact.subscription_id).map(tuple),
    st.lists(overlays, max_size=2).map(tuple),
    st.booleans(),
    st.lists(payments, max_size=2).map(tuple),
)
credit_rows = st.builds(Credit, st.none() | st.integers(0, 2000), st.integers(0, 2000), st.integers(0, 2000))
usages = st.dictionaries(instants, credit_rows, max_size=3)
questions = st.builds(Ask, st.integers(0, 3000), st.sampled_from([None, "default", "clever"]), st.booleans())
policies = st.sampled_from([POLICY, WITH_FREE])


@settings(deadline=None)
@given(facts_of_an_account, policies, instants, usages, questions)
def test_every_input_has_an_answer_and_the_same_input_the_same_one(
    facts: AccountFacts, policy: Policy, now: datetime, usage: dict[datetime, Credit], asked: Ask
) -> None:
    decision = decide(facts, policy, now, usage, asked)
    assert decision == decide(facts, policy, now, usage, asked)
    assert decision.verdict in {"ALLOW", "ALLOW_GRACE", "DENY", "INDETERMINATE"}
    assert decision.reasons
    assert all(isinstance(reason, Reason) for reason in decision.reasons)
    assert len(set(decision.reasons)) == len(decision.reasons)
    assert decision.valid_until is None or decision.valid_until > now
    if decision.permits:
        assert decision.period is not None, "what is held is held for a period"
        assert decision.remaining is None or decision.held_tokens <= decision.remaining
    else:
        assert decision.held_tokens == 0


@settings(deadline=None)
@given(facts_of_an_account, policies, instants, st.integers(0, 60 * 24 * 60))
def test_without_an_event_a_decision_changes_only_at_its_valid_until(
    facts: AccountFacts, policy: Policy, now: datetime, minutes: int
) -> None:
    decision = decide(facts, policy, now, {}, Ask())
    later = now + timedelta(minutes=minutes)
    if decision.valid_until is not None and later >= decision.valid_until:
        return
    after = decide(facts, policy, later, {}, Ask())
    assert (after.verdict, after.reasons, after.plan) == (decision.verdict, decision.reasons, decision.plan)


@settings(deadline=None)
@given(facts_of_an_account, policies, instants, usages, questions)
def test_facts_read_back_from_json_decide_the_same(
    facts: AccountFacts, policy: Policy, now: datetime, usage: dict[datetime, Credit], asked: Ask
) -> None:
    stored = FACTS.validate_json(FACTS.dump_json(facts))
    restored = Policy.model_validate_json(policy.model_dump_json())
    assert restored.version == policy.version
    assert decide(stored, restored, now, usage, asked) == decide(facts, policy, now, usage, asked)


def test_every_reason_that_decides_about_accounts_is_reached_by_a_test_of_the_table() -> None:
    elsewhere = {
        Reason.MANUAL_BLOCK,
        Reason.MANUAL_ALLOW,
        Reason.NO_SUBSCRIPTION,
        Reason.FREE_PLAN,
        Reason.MODEL_NOT_IN_PLAN,
        Reason.QUOTA_EXHAUSTED,
        Reason.OVERAGE_PERMITTED,
        Reason.HOLD_ENDED,
        Reason.ACCOUNT_MISMATCH,
    }
    of_payments = {reason for _, _, reason in PAYMENT_ROWS.values()}
    assert {reason for _, _, reason, _ in ROWS.values()} | of_payments | elsewhere == set(Reason)


def test_the_month_of_december_ends_in_january() -> None:
    month = calendar_month(datetime(2026, 12, 31, 23, 59, tzinfo=UTC))
    assert (month.start, month.end) == (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
