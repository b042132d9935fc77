"""What both control ports share: JSON bodies in and out, and errors that say what to send instead."""

import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from aiohttp import web

AWAIT_SECONDS_MAX = 60.0
T = TypeVar("T")


class ControlError(Exception):
    """The control request cannot be carried out as sent; the text says why."""


@web.middleware
async def errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ControlError as error:
        return web.json_response({"error": str(error)}, status=400)


def control_app() -> web.Application:
    return web.Application(middlewares=[errors_as_json], client_max_size=64 * 1024 * 1024)


async def body_of(request: web.Request) -> dict[str, Any]:
    raw = await request.read()
    try:
        body = json.loads(raw or b"{}")
    except ValueError as error:
        raise ControlError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ControlError("the body must be a JSON object")
    return body


def filled(kind: type[T], fields: Mapping[str, Any]) -> T:
    """Make a dataclass from JSON; an unknown name is an error, so that a misspelt fault cannot pass as none."""
    if not isinstance(fields, Mapping):
        raise ControlError(f"{kind.__name__} must be a JSON object")
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    unknown = [name for name in fields if name not in known]
    if unknown:
        raise ControlError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ControlError(f"{kind.__name__}: {error}") from None


def timeout_of(fields: Mapping[str, Any]) -> float:
    return min(float(fields.get("timeout_seconds", 10)), AWAIT_SECONDS_MAX)


def number_of(text: str | None, default: int) -> int:
    try:
        return default if text is None else int(text)
    except ValueError:
        raise ControlError(f"{text!r} is not a whole number") from None
