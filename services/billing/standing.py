"""What one subscription permits at an instant: the table of Stripe's statuses, one function for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from services.billing.policy import Plan, Policy
from services.billing.reasons import Reason
from services.billing.subscription import SubscriptionFact
from shared.contracts.billing import Verdict

CHAT: Final = "chat"
"""The feature that every request needs."""

RENEWAL_SLACK: Final = timedelta(hours=6)
"""Stripe makes a renewal's invoice at the end of the period and finalizes it about an hour later."""
STALE_BUDGET: Final = timedelta(hours=72)
"""For this long Stripe repeats a webhook, so for this long an old fact may only be late."""
UNKNOWN_STATUS_BUDGET: Final = timedelta(hours=24)
FIRST_PAYMENT_WINDOW: Final = timedelta(hours=23)


@dataclass(frozen=True)
class Period:
    """What a quota is granted for."""

    start: datetime
    end: datetime


@dataclass(frozen=True)
class Standing:
    """One subscription's verdict, the plan it gives, and the earliest instant at which time alone changes it."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    valid_until: datetime | None = None
    plan: str | None = None
    period: Period | None = None

    @property
    def reason(self) -> Reason:
        return self.reasons[0]


def standing_of(fact: SubscriptionFact, policy: Policy, now: datetime, *, degraded: bool = False) -> Standing:
    """What `fact` permits. `degraded` lets a status nobody knows keep what the one before it permitted, for a day."""
    if fact.customer_deleted:
        return _deny(Reason.CUSTOMER_DELETED)
    if fact.livemode is not None and fact.livemode is not policy.livemode:
        return _deny(Reason.MODE_MISMATCH)
    plan_name, period = _plan_and_period(fact, policy)
    plan = policy.plans[plan_name] if plan_name is not None else None
    row = _ROWS.get(fact.status)
    standing = row(fact, now, plan) if row is not None else _unknown_status(fact, policy, now, degraded=degraded)
    standing = replace(standing, plan=plan_name, period=period)
    if standing.verdict in {"ALLOW", "ALLOW_GRACE"}:
        return _limited_to_plan(standing, plan)
    return standing


def _limited_to_plan(standing: Standing, plan: Plan | None) -> Standing:
    if plan is None:
        return replace(standing, verdict="DENY", reasons=(Reason.PRICE_UNKNOWN, *standing.reasons))
    if CHAT not in plan.features:
        return replace(standing, verdict="DENY", reasons=(Reason.FEATURE_NOT_ENTITLED, *standing.reasons))
    if standing.period is None:
        return replace(standing, verdict="INDETERMINATE", reasons=(Reason.FACT_INCOMPLETE,), valid_until=None)
    return standing


def _plan_and_period(fact: SubscriptionFact, policy: Policy) -> tuple[str | None, Period | None]:
    """The most generous plan among the subscription's prices."""
    known = [
        (policy.plan_of_price[line.price_id], line) for line in fact.lines if line.price_id in policy.plan_of_price
    ]
    if not known:
        return None, None
    name, line = max(known, key=lambda pair: (quota_rank(policy.plans[pair[0]]), pair[0]))
    if line.period_start is None or line.period_end is None or line.period_end <= line.period_start:
        return name, None
    return name, Period(line.period_start, line.period_end)


def quota_rank(plan: Plan | None) -> float:
    """Orders plans by what they grant; no limit is the most, no plan the least."""
    if plan is None:
        return -1.0
    return float("inf") if plan.quota_tokens is None else float(plan.quota_tokens)


def _deny(reason: Reason, valid_until: datetime | None = None) -> Standing:
    return Standing("DENY", (reason,), valid_until)


def _incomplete(fact: SubscriptionFact, now: datetime, _plan: Plan | None) -> Standing:
    if fact.created is None:
        return _fact_incomplete()
    ends = fact.created + FIRST_PAYMENT_WINDOW
    if now >= ends:
        return _deny(Reason.FIRST_PAYMENT_EXPIRED)
    return _deny(Reason.FIRST_PAYMENT_PENDING, ends)


def _incomplete_expired(_fact: SubscriptionFact, _now: datetime, _plan: Plan | None) -> Standing:
    return _deny(Reason.FIRST_PAYMENT_EXPIRED)


def _trialing(fact: SubscriptionFact, now: datetime, _plan: Plan | None) -> Standing:
    if fact.trial_end is None:
        return _fact_incomplete()
    ends = min(fact.trial_end, fact.cancel_at or fact.trial_end)
    if now < ends:
        return Standing("ALLOW", (Reason.TRIAL_ACTIVE,), ends)
    if now < ends + STALE_BUDGET:
        return Standing("ALLOW", (Reason.TRIAL_END_UNCONFIRMED,), ends + STALE_BUDGET)
    return Standing("INDETERMINATE", (Reason.STATE_STALE,))


def _active(fact: SubscriptionFact, now: datetime, _plan: Plan | None) -> Standing:
    period_end = fact.period_end
    if period_end is None:
        return _fact_incomplete()
    if _collection_is_paused(fact, now):
        return _active_uncollected(fact, now, period_end)
    if fact.cancel_at is not None or fact.cancel_at_period_end:
        return _active_until_cancelled(fact, now, fact.cancel_at or period_end)
    if now < period_end + RENEWAL_SLACK:
        return Standing("ALLOW", (Reason.ACTIVE,), period_end + RENEWAL_SLACK)
    return _unconfirmed(fact, now)


def _collection_is_paused(fact: SubscriptionFact, now: datetime) -> bool:
    return fact.collection_pause is not None and not (
        fact.collection_resumes_at is not None and now >= fact.collection_resumes_at
    )


def _active_uncollected(fact: SubscriptionFact, now: datetime, period_end: datetime) -> Standing:
    """Drafts and uncollectible invoices leave the service on; `void` says that nothing is owed after the period."""
    resumes_at = fact.collection_resumes_at
    if fact.collection_pause == "void":
        if now < period_end:
            return Standing("ALLOW", (Reason.COLLECTION_VOID,), min(period_end, resumes_at or period_end))
        return _deny(Reason.COLLECTION_VOID, resumes_at)
    confirmed_until = period_end + RENEWAL_SLACK
    if now < confirmed_until:
        ends = min(confirmed_until, fact.cancel_at or confirmed_until, resumes_at or confirmed_until)
        if ends > now:
            return Standing("ALLOW", (Reason.COLLECTION_PAUSED,), ends)
    return _unconfirmed(fact, now)


def _active_until_cancelled(fact: SubscriptionFact, now: datetime, ends: datetime) -> Standing:
    if now < ends:
        return Standing("ALLOW", (Reason.CANCEL_SCHEDULED,), ends)
    if fact.fetched_at < ends:  # it was to end and nobody has looked since: most likely it did
        return Standing("INDETERMINATE", (Reason.STATE_STALE,))
    return _unconfirmed(fact, now)


def _unconfirmed(fact: SubscriptionFact, now: datetime) -> Standing:
    ends = fact.fetched_at + STALE_BUDGET
    if now < ends:
        return Standing("ALLOW", (Reason.PERIOD_UNCONFIRMED,), ends)
    return Standing("INDETERMINATE", (Reason.STATE_STALE,))


def _past_due(fact: SubscriptionFact, now: datetime, plan: Plan | None) -> Standing:
    if plan is None:
        return _deny(Reason.PRICE_UNKNOWN)
    if fact.past_due_since is None:
        return _fact_incomplete()
    ends = fact.past_due_since + timedelta(days=plan.past_due_grace_days)
    if now < ends:
        return Standing("ALLOW_GRACE", (Reason.PAST_DUE_GRACE,), ends)
    return _deny(Reason.PAST_DUE_GRACE_EXPIRED)


def _unpaid(_fact: SubscriptionFact, _now: datetime, _plan: Plan | None) -> Standing:
    return _deny(Reason.UNPAID)


_PAUSE_REASONS: Final[Mapping[str, Reason]] = {
    "trial_end_without_payment_method": Reason.PAUSED_TRIAL_NO_PAYMENT_METHOD,
    "first_payment_failure": Reason.PAUSED_PAYMENT_FAILURE,
    "final_payment_failure": Reason.PAUSED_PAYMENT_EXHAUSTED,
    "pause_requested": Reason.PAUSED_REQUESTED,
    "system": Reason.PAUSED_SYSTEM,
}


def _paused(fact: SubscriptionFact, _now: datetime, _plan: Plan | None) -> Standing:
    return _deny(_PAUSE_REASONS.get(fact.pause_reason or "", Reason.PAUSED))


def _canceled(_fact: SubscriptionFact, _now: datetime, _plan: Plan | None) -> Standing:
    return _deny(Reason.CANCELED)


def _fact_incomplete() -> Standing:
    return Standing("INDETERMINATE", (Reason.FACT_INCOMPLETE,))


_ROWS: Final[Mapping[str, Callable[[SubscriptionFact, datetime, Plan | None], Standing]]] = {
    "incomplete": _incomplete,
    "incomplete_expired": _incomplete_expired,
    "trialing": _trialing,
    "active": _active,
    "past_due": _past_due,
    "unpaid": _unpaid,
    "paused": _paused,
    "canceled": _canceled,
}


def _unknown_status(fact: SubscriptionFact, policy: Policy, now: datetime, *, degraded: bool) -> Standing:
    ends = fact.status_since + UNKNOWN_STATUS_BUDGET if fact.status_since is not None else None
    if ends is None or now >= ends:
        return Standing("INDETERMINATE", (Reason.UNKNOWN_STATUS,))
    if degraded and fact.last_known_status is not None:
        before = standing_of(replace(fact, status=fact.last_known_status), policy, now)
        valid_until = min(ends, before.valid_until or ends)
        return replace(before, reasons=(Reason.UNKNOWN_STATUS, *before.reasons), valid_until=valid_until)
    return Standing("INDETERMINATE", (Reason.UNKNOWN_STATUS,), ends)
