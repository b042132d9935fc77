"""decide(facts, policy, now, usage, asked): may this account run this, why, until when. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal

from services.billing.payment import TAKEN_BACK, PaymentFact, reasons_of
from services.billing.policy import FREE_PLAN, Plan, Policy
from services.billing.reasons import ACTION_HINTS, Reason
from services.billing.standing import CHAT, Period, Standing, quota_rank, standing_of
from services.billing.subscription import SubscriptionFact
from shared.contracts.billing import ActionHint, Eligibility, Verdict


@dataclass(frozen=True)
class Overlay:
    """An operator's word about an account; it ends at `until`, or when it is lifted."""

    kind: Literal["block", "allow"]
    until: datetime | None
    plan: str | None = None


@dataclass(frozen=True)
class AccountFacts:
    """Everything known about an account that is not usage."""

    subscriptions: tuple[SubscriptionFact, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    customer_deleted: bool = False
    """Every Stripe customer of the account was deleted."""
    payments: tuple[PaymentFact, ...] = ()
    """Those that something was said about since they were made."""


@dataclass(frozen=True)
class Credit:
    """What is used of one period's grant; `granted` is None where nothing limits it."""

    granted: int | None
    settled: int
    held: int


Usage = Mapping[datetime, Credit]
"""By the start of the period."""


@dataclass(frozen=True)
class Ask:
    """What is asked for: tokens, a model (None: any), and whether a degraded rule may answer."""

    tokens: int = 1
    model: str | None = None
    degraded: bool = False


@dataclass(frozen=True)
class Decision:
    """An answer with its reasons; the first decided. `valid_until` is when time alone may change it."""

    verdict: Verdict
    reasons: tuple[Reason, ...]
    valid_until: datetime | None = None
    plan: str | None = None
    models: tuple[str, ...] | None = None
    remaining: int | None = None
    period: Period | None = None
    granted_tokens: int | None = None
    held_tokens: int = 0
    """What a hold takes from the grant: the tokens asked for, or what is left where overage is billed."""

    @property
    def permits(self) -> bool:
        return self.verdict in {"ALLOW", "ALLOW_GRACE"}

    @property
    def action_hint(self) -> ActionHint | None:
        return ACTION_HINTS.get(self.reasons[0])

    def eligibility(self) -> Eligibility:
        """The decision in the words of the other services."""
        return Eligibility(
            decision=self.verdict,
            reasons=tuple(str(reason) for reason in self.reasons),
            plan=self.plan,
            models=self.models,
            valid_until=self.valid_until,
            remaining=self.remaining,
            action_hint=self.action_hint,
        )


def decide(facts: AccountFacts, policy: Policy, now: datetime, usage: Usage, asked: Ask) -> Decision:
    """The first rule that matches decides; the reasons of those it overruled follow its own."""
    overlays = [overlay for overlay in facts.overlays if overlay.until is None or now < overlay.until]
    blocks = [overlay for overlay in overlays if overlay.kind == "block"]
    if blocks:
        return Decision("DENY", (Reason.MANUAL_BLOCK,), _earliest(overlay.until for overlay in overlays))
    standing = _best_standing(facts, policy, now, degraded=asked.degraded)
    allows = [overlay for overlay in overlays if overlay.kind == "allow"]
    if allows:
        standing = _allowed_by_operator(allows, standing, policy, now)
    if standing.verdict in {"DENY", "INDETERMINATE"}:
        return Decision(standing.verdict, standing.reasons, standing.valid_until, standing.plan, period=standing.period)
    return _within_plan(standing, policy, usage, asked)


def _best_standing(facts: AccountFacts, policy: Policy, now: datetime, *, degraded: bool) -> Standing:
    """ALLOW beats ALLOW_GRACE beats INDETERMINATE beats DENY; among equals the most generous plan."""
    if facts.customer_deleted:
        return Standing("DENY", (Reason.CUSTOMER_DELETED,))
    ordered = sorted(facts.subscriptions, key=lambda fact: fact.subscription_id)
    standings = [
        _after_payments(standing_of(fact, policy, now, degraded=degraded), fact, facts.payments, policy)
        for fact in ordered
    ]
    if all(standing.reason in _LEAVES_ROOM_FOR_FREE for standing in standings):
        standings.append(_without_subscription(policy, now))
    best = max(standings, key=lambda standing: _rank(standing, policy))
    return _with_losers(best, standings)


def _after_payments(
    standing: Standing, fact: SubscriptionFact, payments: Iterable[PaymentFact], policy: Policy
) -> Standing:
    """What the subscription permits stands and falls with the payment of its present period."""
    said = [
        reason
        for payment in payments
        if payment.invoice_id is not None and payment.invoice_id == fact.latest_invoice_id
        # As of a subscription of the other mode: it says nothing here.
        if payment.livemode is None or payment.livemode is policy.livemode
        for reason in reasons_of(payment)
    ]
    if not said or standing.verdict not in {"ALLOW", "ALLOW_GRACE"}:
        return standing
    decisive = [reason for reason in said if reason in TAKEN_BACK]
    reasons = tuple(dict.fromkeys([*decisive, *standing.reasons, *said]))
    return replace(standing, verdict="DENY" if decisive else standing.verdict, reasons=reasons)


_LEAVES_ROOM_FOR_FREE: Final = frozenset(
    {Reason.CANCELED, Reason.FIRST_PAYMENT_PENDING, Reason.FIRST_PAYMENT_EXPIRED, Reason.CUSTOMER_DELETED}
)
"""Nothing is running and nothing is owed: the account is as one that never subscribed."""

_VERDICTS: Final[tuple[Verdict, ...]] = ("DENY", "INDETERMINATE", "ALLOW_GRACE", "ALLOW")


_SAYS_LEAST: Final = (Reason.NO_SUBSCRIPTION, Reason.FIRST_PAYMENT_EXPIRED, Reason.CANCELED)
"""Among denials one that somebody can still do something about is the answer, and these come last."""


def _rank(standing: Standing, policy: Policy) -> tuple[int, int, float]:
    plan = policy.plans[standing.plan] if standing.plan is not None else None
    telling = _SAYS_LEAST.index(standing.reason) if standing.reason in _SAYS_LEAST else len(_SAYS_LEAST)
    return _VERDICTS.index(standing.verdict), telling, quota_rank(plan)


def _with_losers(best: Standing, standings: Iterable[Standing]) -> Standing:
    reasons = dict.fromkeys([*best.reasons, *(reason for standing in standings for reason in standing.reasons)])
    reasons.pop(Reason.NO_SUBSCRIPTION, None)
    valid_until = _earliest(standing.valid_until for standing in standings)
    return replace(best, reasons=tuple(reasons) or best.reasons, valid_until=valid_until)


def _without_subscription(policy: Policy, now: datetime) -> Standing:
    if policy.free is None or CHAT not in policy.free.features:
        return Standing("DENY", (Reason.NO_SUBSCRIPTION,))
    month = calendar_month(now)
    return Standing("ALLOW", (Reason.FREE_PLAN,), month.end, FREE_PLAN, month)


def calendar_month(now: datetime) -> Period:
    """The month, UTC, that `now` is in: the period of whoever has no subscription."""
    start = datetime(now.year, now.month, 1, tzinfo=UTC)
    following = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return Period(start, datetime(*following, 1, tzinfo=UTC))


def _allowed_by_operator(allows: list[Overlay], standing: Standing, policy: Policy, now: datetime) -> Standing:
    """An operator's allow skips the subscription, not the quota: that of the plan named, else of the subscription."""
    named = next((overlay.plan for overlay in allows if overlay.plan in policy.plans), None)
    month = calendar_month(now)
    period = standing.period or month
    ends = [standing.valid_until, *(overlay.until for overlay in allows)]
    if not period.start <= now < period.end:
        period = month
    ends.append(period.end)
    reasons = tuple(dict.fromkeys([Reason.MANUAL_ALLOW, *standing.reasons]))
    return Standing("ALLOW", reasons, _earliest(ends), named or standing.plan, period)


def _within_plan(standing: Standing, policy: Policy, usage: Usage, asked: Ask) -> Decision:
    """The model and the quota, for a standing that permits."""
    plan = policy.plans[standing.plan] if standing.plan is not None else None
    decision = Decision(
        standing.verdict,
        standing.reasons,
        standing.valid_until,
        standing.plan,
        plan.models if plan is not None else None,
        period=standing.period,
        granted_tokens=plan.quota_tokens if plan is not None else None,
    )
    if decision.models is not None and asked.model is not None and asked.model not in decision.models:
        return _denied(decision, Reason.MODEL_NOT_IN_PLAN)
    return _within_quota(decision, plan, usage, asked)


def _within_quota(decision: Decision, plan: Plan | None, usage: Usage, asked: Ask) -> Decision:
    granted = decision.granted_tokens
    if granted is None or decision.period is None or plan is None:
        return replace(decision, held_tokens=asked.tokens)
    used = usage.get(decision.period.start, Credit(granted, 0, 0))
    remaining = max(granted - used.settled - used.held, 0)
    if asked.tokens <= remaining:
        return replace(decision, remaining=remaining, held_tokens=asked.tokens)
    # Nothing more on credit while the last payment is disputed.
    if plan.overage and decision.verdict == "ALLOW" and Reason.DISPUTE_OPEN not in decision.reasons:
        reasons = (Reason.OVERAGE_PERMITTED, *decision.reasons)
        return replace(decision, reasons=reasons, remaining=remaining, held_tokens=remaining)
    return replace(_denied(decision, Reason.QUOTA_EXHAUSTED), remaining=remaining)


def _denied(decision: Decision, reason: Reason) -> Decision:
    return replace(decision, verdict="DENY", reasons=(reason, *decision.reasons))


def _earliest(instants: Iterable[datetime | None]) -> datetime | None:
    return min((at for at in instants if at is not None), default=None)
