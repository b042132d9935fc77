"""Error replies of OpenAI and of servers that imitate it, told apart by status, then code, then type."""

from __future__ import annotations

from typing import Any, Final

from services.orchestrator.providers.openai_answer import Malformed, parse_object
from services.orchestrator.task import FailureKind

ERROR_BODY_BYTES_MAX: Final = 64 * 2**10

_QUOTA: Final = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
    }
)
_RATE: Final = frozenset({"rate_limit_exceeded", "slow_down", "rate_limit_error", "requests", "tokens"})

_BY_STATUS: Final[dict[int, FailureKind]] = {
    401: "unauthorized",
    402: "quota_exhausted",
    403: "unauthorized",
    404: "not_found",
    408: "timed_out",
    409: "server_error",
    425: "server_error",
}


def error_object(body: bytes) -> dict[str, Any]:
    """The `error` of a reply's body; empty where there is none."""
    try:
        error = parse_object(body).get("error")
    except Malformed:
        return {}
    return error if isinstance(error, dict) else {}


def code_of(error: dict[str, Any]) -> str | None:
    code = error.get("code") or error.get("type")
    return str(code) if code else None


def kind_of_status(status: int, error: dict[str, Any]) -> FailureKind:
    if status == 429:
        return "quota_exhausted" if _words(error) & _QUOTA else "rate_limited"
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if status >= 500:
        return "server_error"
    # A redirect is not followed: it would carry the key to wherever it points.
    return "rejected" if status >= 400 else "malformed"


def kind_in_stream(error: dict[str, Any]) -> FailureKind:
    """An error after the 200: there is no status left to go by."""
    words = _words(error)
    if words & _QUOTA:
        return "quota_exhausted"
    if words & _RATE:
        return "rate_limited"
    return "rejected" if "invalid_request_error" in words else "server_error"


def _words(error: dict[str, Any]) -> set[str]:
    return {str(error.get("code")), str(error.get("type"))}
