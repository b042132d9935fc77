"""The subscription and its items in the endive shape: the current period belongs to the items."""

import calendar
import datetime
from typing import Any

from deploy.local.standins.stripe.form import Params, integer, required
from deploy.local.standins.stripe.listing import as_list
from deploy.local.standins.stripe.state import Object, State

_SECONDS = {"day": 86_400, "week": 7 * 86_400}
_MONTHS = {"month": 1, "year": 12}


def period_end(start: int, recurring: dict[str, Any]) -> int:
    """The same day of a later month, or its last day where there is none."""
    interval, count = recurring["interval"], recurring["interval_count"]
    if interval in _SECONDS:
        return start + int(_SECONDS[interval] * count)
    begun = datetime.datetime.fromtimestamp(start, datetime.UTC)
    month = begun.month - 1 + _MONTHS[interval] * count
    year, month = begun.year + month // 12, month % 12 + 1
    day = min(begun.day, calendar.monthrange(year, month)[1])
    return int(begun.replace(year=year, month=month, day=day).timestamp())


def new_item(state: State, subscription_id: str, params: Params, start: int, end: int | None) -> Object:
    price = state.get("price", required(params, "price"), "items[0][price]")
    quantity = integer(params, "quantity")
    recurring = price["recurring"]
    return {
        "id": state.ids.new("si"),
        "object": "subscription_item",
        "billed_until": None,
        "billing_thresholds": None,
        "created": state.now(),
        "current_period_end": period_end(start, recurring) if end is None else end,
        "current_period_start": start,
        "current_trial": None,
        "discounts": [],
        "metadata": params.get("metadata") or {},
        "plan": _plan(price),
        "price": price,
        "quantity": 1 if quantity is None else quantity,
        "subscription": subscription_id,
        "tax_rates": [],
    }


def _plan(price: Object) -> Object:
    recurring = price["recurring"]
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": recurring["interval"],
        "interval_count": recurring["interval_count"],
        "livemode": False,
        "metadata": {},
        "meter": None,
        "nickname": None,
        "product": price["product"],
        "tiers_mode": None,
        "transform_usage": None,
        "trial_period_days": None,
        "usage_type": "licensed",
    }


def new_subscription(state: State, customer: str, identity: str, items: list[Object]) -> Object:
    now = state.now()
    return {
        "id": identity,
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"type": "flexible", "flexible": {"proration_discounts": "included"}, "updated_at": None},
        "billing_schedules": [],
        "billing_thresholds": None,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": now,
        "currency": items[0]["price"]["currency"],
        "customer": customer,
        "customer_account": None,
        "days_until_due": None,
        "default_payment_method": None,
        "default_source": None,
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": as_list(items, f"/v1/subscription_items?subscription={identity}"),
        "latest_invoice": None,
        "livemode": False,
        "metadata": {},
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": now,
        "status": "active",
        "status_details": None,
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": None,
    }
