"""Lists as Stripe gives them: newest first, paged by `starting_after` and `ending_before`, with `has_more`."""

from collections.abc import Callable
from typing import Any

from deploy.local.standins.stripe.errors import StripeError, missing
from deploy.local.standins.stripe.form import integer
from deploy.local.standins.stripe.request import Asked

LIMIT_DEFAULT = 10
LIMIT_MAX = 100
_RANGE: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


def page(items: list[dict[str, Any]], asked: Asked) -> dict[str, Any]:
    limit = integer(asked.params, "limit")
    limit = LIMIT_DEFAULT if limit is None else limit
    if not 1 <= limit <= LIMIT_MAX:
        raise StripeError(400, f"Invalid limit: must be 1 to {LIMIT_MAX}", param="limit")
    after, before = asked.params.get("starting_after"), asked.params.get("ending_before")
    if after:
        rest = items[_position(items, after, "starting_after") + 1 :]
        return as_list(rest[:limit], asked.path, len(rest) > limit)
    if before:
        rest = items[: _position(items, before, "ending_before")]
        return as_list(rest[-limit:], asked.path, len(rest) > limit)
    return as_list(items[:limit], asked.path, len(items) > limit)


def as_list(items: list[dict[str, Any]], url: str, has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": items, "has_more": has_more, "url": url}


def filtered(items: list[dict[str, Any]], asked: Asked, *names: str) -> list[dict[str, Any]]:
    """Keep the items whose fields equal the parameters of these names, and whose `created` is in the range."""
    for name in names:
        wanted = asked.params.get(name)
        if wanted is not None:
            items = [item for item in items if str(item.get(name)) == wanted]
    created = asked.params.get("created", {})
    if not isinstance(created, dict):
        exact = integer(asked.params, "created")
        return [item for item in items if item["created"] == exact]
    for name in created:
        if name not in _RANGE:
            raise StripeError(400, f"Received unknown parameter: created[{name}]", param="created")
        bound = integer(created, name) or 0
        items = [item for item in items if _RANGE[name](item["created"], bound)]
    return items


def _position(items: list[dict[str, Any]], identity: str, param: str) -> int:
    for index, item in enumerate(items):
        if item["id"] == identity:
            return index
    raise missing("object", identity, param)
