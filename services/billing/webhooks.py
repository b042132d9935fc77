"""Stripe to us: verify the raw body, store the event, answer 200. Nothing else happens before the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Final, Literal

from aiohttp import web

from services.billing.store.events import EventStore
from services.billing.stripe_client import signature_matches
from services.billing.stripe_event import EventMalformed, StripeEvent, parse_event
from shared.clock import Clock
from shared.errors import Problem
from shared.http import json_response, read_body
from shared.logs import get_logger
from shared.metrics import counter

log = get_logger(__name__)

AGE_SECONDS_MAX: Final = 300
"""In both directions: Stripe's library accepts any timestamp of the future."""

_TIMESTAMP: Final = re.compile(r"(?:^|,)t=(\d{1,12})(?:,|$)")

_received = counter("billing_webhooks", "Webhooks of Stripe, by outcome.", ("outcome",))
_verified = counter("billing_webhook_secrets", "Webhooks verified, by the place of the secret.", ("secret",))


class Webhooks:
    """POST /webhooks/stripe takes snapshot events, POST /webhooks/stripe/thin thin ones."""

    def __init__(
        self, events: EventStore, secrets: Sequence[str], clock: Clock, *, on_stored: Callable[[], None]
    ) -> None:
        self._events = events
        self._secrets = secrets
        self._clock = clock
        self._on_stored = on_stored

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/webhooks/stripe", self.snapshot), web.post("/webhooks/stripe/thin", self.thin)]

    async def snapshot(self, request: web.Request) -> web.Response:
        return await self._take(request, "snapshot")

    async def thin(self, request: web.Request) -> web.Response:
        return await self._take(request, "thin")

    async def _take(self, request: web.Request, family: Literal["snapshot", "thin"]) -> web.Response:
        try:
            event = self._verified_event(await read_body(request), request.headers.get("Stripe-Signature"), family)
        except Problem as problem:
            _received.labels(problem.code).inc()
            log.warning("webhook.refused", code=problem.code)
            raise
        is_new = await self._events.insert_events_if_new([event]) == 1
        _received.labels("stored" if is_new else "duplicate").inc()
        if is_new:
            log.info("webhook.stored", event_id=event.event_id, type=event.type)
            self._on_stored()
        return json_response({"received": True, "duplicate": not is_new})

    def _verified_event(self, raw: bytes, header: str | None, family: Literal["snapshot", "thin"]) -> StripeEvent:
        """The event, or the Problem that names the first thing wrong with it."""
        if not header:
            raise Problem(400, "signature_missing", "The header Stripe-Signature is missing.")
        try:
            body = raw.decode()
        except UnicodeDecodeError:
            raise Problem(400, "body_not_utf8", "The body is not UTF-8.") from None
        secret_index = self._matching_secret(body, header)
        self._check_age(header)
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            raise Problem(400, "body_not_json", "The body is not JSON.") from None
        try:
            return parse_event(document, family=family, raw=raw, secret_index=secret_index)
        except EventMalformed as error:
            raise Problem(400, "event_malformed", f"The body is not an event: {error}.") from None

    def _matching_secret(self, body: str, header: str) -> int:
        for index, secret in enumerate(self._secrets):
            if signature_matches(body, header, secret):
                _verified.labels(str(index)).inc()
                return index
        raise Problem(400, "signature_invalid", "No webhook secret that is configured made this signature.")

    def _check_age(self, header: str) -> None:
        timestamp = _TIMESTAMP.search(header)
        age_seconds = self._clock.now().timestamp() - int(timestamp[1]) if timestamp is not None else None
        if age_seconds is None or abs(age_seconds) > AGE_SECONDS_MAX:
            detail = f"The signature's time is more than {AGE_SECONDS_MAX} s away from ours."
            raise Problem(400, "timestamp_out_of_bounds", detail)
