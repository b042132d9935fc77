"""Every reason a decision can give, and what an account's owner can do about it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from shared.contracts.billing import ActionHint


class Reason(StrEnum):
    """Closed: nothing outside this list is ever recorded. The first reason of a decision decided it."""

    # An operator's word, or a fact about the whole account.
    MANUAL_BLOCK = "manual_block"
    MANUAL_ALLOW = "manual_allow"
    CUSTOMER_DELETED = "customer_deleted"
    NO_SUBSCRIPTION = "no_subscription"
    FREE_PLAN = "free_plan"

    # What one subscription says.
    MODE_MISMATCH = "mode_mismatch"
    FACT_INCOMPLETE = "fact_incomplete"
    UNKNOWN_STATUS = "unknown_status"
    FIRST_PAYMENT_PENDING = "first_payment_pending"
    FIRST_PAYMENT_EXPIRED = "first_payment_expired"
    TRIAL_ACTIVE = "trial_active"
    TRIAL_END_UNCONFIRMED = "trial_end_unconfirmed"
    ACTIVE = "active"
    CANCEL_SCHEDULED = "cancel_scheduled"
    COLLECTION_PAUSED = "collection_paused"
    COLLECTION_VOID = "collection_void"
    PERIOD_UNCONFIRMED = "period_unconfirmed"
    STATE_STALE = "state_stale"
    PAST_DUE_GRACE = "past_due_grace"
    PAST_DUE_GRACE_EXPIRED = "past_due_grace_expired"
    UNPAID = "unpaid"
    PAUSED = "paused"
    PAUSED_TRIAL_NO_PAYMENT_METHOD = "paused_trial_no_payment_method"
    PAUSED_PAYMENT_FAILURE = "paused_payment_failure"
    PAUSED_PAYMENT_EXHAUSTED = "paused_payment_exhausted"
    PAUSED_REQUESTED = "paused_requested"
    PAUSED_SYSTEM = "paused_system"
    CANCELED = "canceled"

    # What became of the payment of the present period.
    DISPUTE_LOST = "dispute_lost"
    DISPUTE_PREVENTED = "dispute_prevented"
    REFUNDED = "refunded"
    DISPUTE_OPEN = "dispute_open"
    DISPUTE_INQUIRY = "dispute_inquiry"
    DISPUTE_CLEARED = "dispute_cleared"
    PARTIAL_REFUND = "partial_refund"
    FRAUD_WARNING = "fraud_warning"

    # What the plan permits.
    PRICE_UNKNOWN = "price_unknown"
    FEATURE_NOT_ENTITLED = "feature_not_entitled"
    MODEL_NOT_IN_PLAN = "model_not_in_plan"
    QUOTA_EXHAUSTED = "quota_exhausted"
    OVERAGE_PERMITTED = "overage_permitted"

    # About the hold itself.
    HOLD_ENDED = "hold_ended"
    ACCOUNT_MISMATCH = "account_mismatch"


ACTION_HINTS: Final[Mapping[Reason, ActionHint]] = {
    Reason.MANUAL_BLOCK: "contact_support",
    Reason.CUSTOMER_DELETED: "contact_support",
    Reason.NO_SUBSCRIPTION: "subscribe",
    Reason.MODE_MISMATCH: "contact_support",
    Reason.FIRST_PAYMENT_PENDING: "complete_payment",
    Reason.FIRST_PAYMENT_EXPIRED: "subscribe",
    Reason.COLLECTION_VOID: "contact_support",
    Reason.PAST_DUE_GRACE: "update_payment_method",
    Reason.PAST_DUE_GRACE_EXPIRED: "update_payment_method",
    Reason.UNPAID: "update_payment_method",
    Reason.PAUSED: "resume",
    Reason.PAUSED_TRIAL_NO_PAYMENT_METHOD: "resume",
    Reason.PAUSED_PAYMENT_FAILURE: "resume",
    Reason.PAUSED_PAYMENT_EXHAUSTED: "resume",
    Reason.PAUSED_REQUESTED: "resume",
    Reason.PAUSED_SYSTEM: "resume",
    Reason.CANCELED: "subscribe",
    Reason.DISPUTE_LOST: "contact_support",
    Reason.DISPUTE_PREVENTED: "contact_support",
    Reason.REFUNDED: "contact_support",
    Reason.PRICE_UNKNOWN: "contact_support",
    Reason.FEATURE_NOT_ENTITLED: "upgrade",
    Reason.MODEL_NOT_IN_PLAN: "upgrade",
    Reason.QUOTA_EXHAUSTED: "upgrade",
}
"""By the deciding reason; reasons that need nothing from anybody have none."""
