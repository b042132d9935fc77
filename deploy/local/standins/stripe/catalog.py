"""The products and prices that exist from the start, and the features each product grants."""

from typing import Any

FEATURES: dict[str, list[str]] = {
    "prod_parley_basic": ["chat"],
    "prod_parley_pro": ["chat", "priority"],
}
_PLANS = (("basic", "Parley Basic", 900), ("pro", "Parley Pro", 2900))


def product(identity: str, name: str, created: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "product",
        "active": True,
        "created": created,
        "default_price": None,
        "description": None,
        "images": [],
        "livemode": False,
        "marketing_features": [],
        "metadata": {},
        "name": name,
        "package_dimensions": None,
        "shippable": None,
        "statement_descriptor": None,
        "tax_code": None,
        "type": "service",
        "unit_label": None,
        "updated": created,
        "url": None,
    } | fields


def price(identity: str, of_product: str, unit_amount: int, created: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": identity,
        "object": "price",
        "active": True,
        "billing_scheme": "per_unit",
        "created": created,
        "currency": "usd",
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": None,
        "metadata": {},
        "nickname": None,
        "product": of_product,
        "recurring": {
            "interval": "month",
            "interval_count": 1,
            "meter": None,
            "trial_period_days": None,
            "usage_type": "licensed",
        },
        "tax_behavior": "unspecified",
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "recurring",
        "unit_amount": unit_amount,
        "unit_amount_decimal": str(unit_amount),
    } | fields


def products(created: int) -> list[dict[str, Any]]:
    return [
        product(f"prod_parley_{plan}", name, created, default_price=f"price_parley_{plan}") for plan, name, _ in _PLANS
    ]


def prices(created: int) -> list[dict[str, Any]]:
    return [
        price(f"price_parley_{plan}", f"prod_parley_{plan}", cents, created, lookup_key=f"parley_{plan}")
        for plan, _, cents in _PLANS
    ]
