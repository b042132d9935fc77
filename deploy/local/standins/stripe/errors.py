"""Stripe's error bodies."""

from typing import Any

_TYPES = {401: "invalid_request_error", 402: "card_error", 429: "invalid_request_error"}
_CODES = {429: "rate_limit"}
_SERVER_ERROR = 500


class StripeError(Exception):
    """An error answered in Stripe's shape; message, type, code and param as given."""

    def __init__(self, status: int, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.fields = status, message, fields

    def body(self, request_id: str) -> dict[str, Any]:
        kind = "api_error" if self.status >= _SERVER_ERROR else _TYPES.get(self.status, "invalid_request_error")
        error: dict[str, Any] = {"message": self.message, "type": kind}
        if self.status in _CODES:
            error["code"] = _CODES[self.status]
        error |= {name: value for name, value in self.fields.items() if value is not None}
        if error.get("code"):
            error["doc_url"] = f"https://stripe.com/docs/error-codes/{error['code'].replace('_', '-')}"
        error["request_log_url"] = f"https://dashboard.stripe.com/test/logs/{request_id}"
        return {"error": error}


def missing(kind: str, identity: str, param: str = "id") -> StripeError:
    """404 for what the path names, 400 for what a parameter names."""
    status = 404 if param == "id" else 400
    return StripeError(status, f"No such {kind}: '{identity}'", code="resource_missing", param=param)
