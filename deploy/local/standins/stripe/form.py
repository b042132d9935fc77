"""Stripe's form encoding: `items[0][price]=p&expand[]=x` becomes nested objects and lists."""

import re
from collections.abc import Iterable
from typing import Any

from deploy.local.standins.stripe.errors import StripeError

_PART = re.compile(r"\[([^\[\]]*)\]")
Params = dict[str, Any]


def decode(pairs: Iterable[tuple[str, str]]) -> Params:
    root: Params = {}
    for name, value in pairs:
        head, _, _ = name.partition("[")
        _put(root, [head, *_PART.findall(name[len(head) :])], value)
    return {name: _lists(value) for name, value in root.items()}


def _put(node: Params, path: list[str], value: str) -> None:
    for part in path[:-1]:
        # Seen when a name is used both as a value and as an object.
        below = node.setdefault(part or str(len(node)), {})
        if not isinstance(below, dict):
            raise StripeError(400, f"Invalid {path[0]}", param=path[0])
        node = below
    node[path[-1] or str(len(node))] = value


def _lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    items = {name: _lists(inner) for name, inner in value.items()}
    if items and all(name.isdigit() for name in items):
        return [items[name] for name in sorted(items, key=int)]
    return items


def flag(params: Params, name: str, default: bool = False) -> bool:
    value = params.get(name)
    if value in (None, ""):
        return default
    if value not in ("true", "false"):
        raise StripeError(400, f"Invalid boolean: {value}", param=name)
    return bool(value == "true")


def integer(params: Params, name: str) -> int | None:
    value = params.get(name)
    if value in (None, ""):
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise StripeError(400, f"Invalid integer: {value}", param=name, code="parameter_invalid_integer") from None


def required(params: Params, name: str) -> Any:
    if params.get(name) in (None, "", [], {}):
        raise StripeError(400, f"Missing required param: {name}.", param=name, code="parameter_missing")
    return params[name]


def merged_metadata(old: dict[str, str], params: Params) -> dict[str, str]:
    """An empty value removes its key, an empty metadata removes all."""
    new = params.get("metadata")
    if new is None:
        return old
    if new == "":
        return {}
    return {name: value for name, value in (old | dict(new)).items() if value != ""}
