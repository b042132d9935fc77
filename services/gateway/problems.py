"""Every problem code of the public API, with the status it comes with and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Code:
    """A stable word for clients to act on."""

    code: str
    status: int
    meaning: str


CODES: Final[tuple[Code, ...]] = (
    Code("malformed_http", 400, "What was sent is not HTTP, or has too many headers."),
    Code("http_error", 400, "The call breaks a rule of HTTP; see `detail`."),
    Code("invalid_json", 400, "The body is not JSON in UTF-8."),
    Code("body_incomplete", 400, "The connection was lost before the body had arrived."),
    Code("invalid_idempotency_key", 400, "The Idempotency-Key header is not 1 to 255 printable ASCII characters."),
    Code("invalid_last_event_id", 400, "The Last-Event-ID header is not an event id of ours."),
    Code("invalid_api_key", 401, "There is no usable API key in the Authorization header."),
    Code("payment_required", 402, "Billing denies the account new requests; see `reason` and `action_hint`."),
    Code("insufficient_scope", 403, "The key is good, but not for this route."),
    Code("session_not_found", 404, "The account has no such session."),
    Code("request_not_found", 404, "The account has no such request."),
    Code("account_not_found", 404, "There is no such account."),
    Code("key_not_found", 404, "The account has no such key."),
    Code("route_not_found", 404, "There is no such route."),
    Code("method_not_allowed", 405, "The route has no such method; see the Allow header."),
    Code("no_customer", 409, "The account has bought nothing yet; begin with a checkout."),
    Code("already_subscribed", 409, "The account has this plan already; the portal manages it."),
    Code("body_too_slow", 408, "The body did not arrive in time."),
    Code("body_too_large", 413, "The body is larger than this server takes."),
    Code("unsupported_media_type", 415, "The body is not application/json."),
    Code("unsupported_content_encoding", 415, "The body is compressed; send it as it is."),
    Code("expectation_failed", 417, "The Expect header asks for something else than 100-continue."),
    Code("invalid_request", 422, "The body is not as documented; see `errors`."),
    Code("invalid_parameter", 422, "The query string is not as documented; see `errors`."),
    Code("invalid_text", 422, "Text contains U+0000 or a lone surrogate."),
    Code("invalid_cursor", 422, "The cursor is not one that this list or log has given."),
    Code("model_not_found", 422, "There is no model of this name."),
    Code("input_too_large", 422, "The text of the input is larger than this server takes."),
    Code("plan_not_found", 422, "No such plan is for sale."),
    Code("price_not_in_plan", 422, "The plan has no such price."),
    Code("idempotency_key_reused", 422, "The Idempotency-Key was used before with a body of other bytes."),
    Code("session_queue_full", 429, "The session has as many open requests as it may have."),
    Code("account_queue_full", 429, "The account has as many open requests as it may have."),
    Code("header_too_long", 431, "A header or the URL is longer than this server takes."),
    Code("internal_error", 500, "The error is ours and has been logged."),
    Code("stripe_refused", 502, "Stripe refused the call; it would again. Billing's log says why."),
    Code("unavailable", 503, "A part of the service is away; try again after Retry-After."),
    Code("too_many_streams", 503, "As many clients wait as this server can hold; poll instead."),
)

STATUS_BY_CODE: Final = {code.code: code.status for code in CODES}

EVERYWHERE: Final = (
    "malformed_http",
    "invalid_api_key",
    "insufficient_scope",
    "expectation_failed",
    "header_too_long",
    "internal_error",
    "unavailable",
)
"""What every route that needs a key may answer."""

WITH_BODY: Final = (
    "invalid_json",
    "body_incomplete",
    "body_too_slow",
    "body_too_large",
    "unsupported_media_type",
    "unsupported_content_encoding",
    "invalid_request",
    "invalid_text",
)
"""What every route that reads a body may answer."""
