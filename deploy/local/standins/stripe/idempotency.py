"""Idempotency keys as Stripe keeps them: the first result answers every repeat of the same request for a day."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from deploy.local.standins.stripe.call_log import ApiCall
from deploy.local.standins.stripe.errors import StripeError

KEYS_MAX = 100_000
KEY_CHARS_MAX = 255
_KEPT_SECONDS = 24 * 3600


@dataclass(slots=True)
class First:
    """The first request of a key and, once it has one, its result."""

    method: str
    path: str
    params: dict[str, Any]
    request_id: str
    at: float = field(default_factory=time.monotonic)
    status: int | None = None
    body: dict[str, Any] = field(default_factory=dict)

    def finish(self, status: int, body: dict[str, Any]) -> None:
        self.status, self.body = status, body


class Keys:
    def __init__(self) -> None:
        self._first: dict[str, First] = {}

    @contextmanager
    def once(self, call: ApiCall) -> Iterator[First]:
        """Gives the finished first of the call's key, or a new one to finish; one that has no result is forgotten."""
        key = call.idempotency_key if call.method == "POST" else None
        known = None if key is None else self._known(key, call)
        if known is not None:
            call.replayed = True
            yield known
            return
        first = First(call.method, call.path, call.params, call.request_id)
        if key is not None:
            self._keep(key, first)
        try:
            yield first
        finally:
            # Stripe keeps nothing of a request that was refused before it began to act.
            if first.status is None and key is not None:
                self._first.pop(key, None)

    def _keep(self, key: str, first: First) -> None:
        if len(self._first) >= KEYS_MAX:
            del self._first[next(iter(self._first))]
        self._first[key] = first

    def _known(self, key: str, call: ApiCall) -> First | None:
        if len(key) > KEY_CHARS_MAX:
            raise StripeError(400, f"An idempotency key has at most {KEY_CHARS_MAX} characters.")
        first = self._first.get(key)
        if first is None or time.monotonic() - first.at > _KEPT_SECONDS:
            return None
        if (first.method, first.path, first.params) != (call.method, call.path, call.params):
            message = (
                "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                f"Try using a key other than '{key}' if you meant to execute a different request."
            )
            raise StripeError(400, message, type="idempotency_error")
        if first.status is None:
            message = "There is currently another in-progress request using this idempotency key."
            raise StripeError(409, message, code="idempotency_key_in_use")
        return first
