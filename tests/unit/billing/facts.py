"""Facts as tests write them: a healthy subscription to `pro`, changed by what the test is about."""

from datetime import UTC, datetime, timedelta
from typing import Any

from services.billing.eligibility import AccountFacts, Ask, Decision, Overlay, Usage, decide
from services.billing.policy import Policy, parse_policy
from services.billing.subscription import PriceLine, SubscriptionFact

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
PERIOD_START = NOW - 10 * DAY
PERIOD_END = NOW + 20 * DAY

PLANS: dict[str, Any] = {
    "plans": {
        "pro": {"stripe_prices": ["price_pro"], "quota_tokens": 1000, "past_due_grace_days": 7},
        "basic": {"stripe_prices": ["price_basic"], "quota_tokens": 100, "models": ["default"]},
        "metered": {"stripe_prices": ["price_metered"], "quota_tokens": 100, "overage": True},
        "endless": {"stripe_prices": ["price_endless"]},
        "silent": {"stripe_prices": ["price_silent"], "features": ["speech"]},
    }
}
POLICY: Policy = parse_policy(PLANS, livemode=False)
WITH_FREE: Policy = parse_policy({"plans": {**PLANS["plans"], "free": {"quota_tokens": 10}}}, livemode=False)


def line(
    price: str = "price_pro", start: datetime | None = PERIOD_START, end: datetime | None = PERIOD_END
) -> PriceLine:
    return PriceLine(price, start, end)


def subscription(status: str = "active", **fields: Any) -> SubscriptionFact:
    known: dict[str, Any] = {
        "subscription_id": "sub_1",
        "customer_id": "cus_1",
        "livemode": False,
        "created": NOW - 10 * DAY,
        "lines": (line(),),
        "fetched_at": NOW - HOUR,
    }
    return SubscriptionFact(**{**known, **fields, "status": status})


def decided(
    *subscriptions: SubscriptionFact,
    policy: Policy = POLICY,
    now: datetime = NOW,
    usage: Usage | None = None,
    asked: Ask | None = None,
    overlays: tuple[Overlay, ...] = (),
    customer_deleted: bool = False,
) -> Decision:
    facts = AccountFacts(subscriptions, overlays, customer_deleted)
    return decide(facts, policy, now, usage or {}, asked or Ask())
