"""A request as its owner sees it: the view, its entity tag, and when to look again."""

from __future__ import annotations

import hashlib
import math
from datetime import datetime
from typing import Any, Final

from services.gateway.records import Request
from services.gateway.request_state import is_ended
from services.gateway.schemas import ChargeView, OutputView, QueuePlace, RequestSummary, RequestView, UsageView
from shared.contracts.billing import Charge
from shared.contracts.content import Output, Usage, WaitingOn

_YOUNG_SECONDS: Final = 10.0
_SETTLED_SECONDS: Final = 60.0
_POLL_MS_YOUNG: Final = 250
_POLL_MS: Final = 1000
_POLL_MS_OLD: Final = 2000
_POLL_MS_BY_WAIT: Final[dict[WaitingOn, int]] = {
    "account_concurrency": 1000,
    "capacity": 1000,
    "retry_backoff": 2000,
    "provider_rate_limit": 2000,
    "eligibility": 3000,
}
_POLL_MS_PER_TURN_AHEAD: Final = 500
_POLL_MS_MAX: Final = 5000


def summarize(request: Request) -> RequestSummary:
    return RequestSummary(**_summary(request))


def view(request: Request, now: datetime) -> RequestView:
    """The whole view. `cursor` is where the log goes on after what the view contains: its start, or its end."""
    result = request.result
    return RequestView(
        **_summary(request),
        queue=QueuePlace(position=request.ahead) if request.ahead is not None else None,
        output=_output_view(result.output) if result and result.output else None,
        error=result.error if result else None,
        usage=_usage_view(result.usage) if result and result.usage else None,
        charge=_charge_view(request.charge) if request.charge else None,
        cursor=result.cursor if result else 0,
        poll_after_ms=poll_after_ms(request, now),
    )


def waiting_on(request: Request) -> WaitingOn | None:
    if request.state == "queued" and request.dispatched_at is None:
        return "session_turn"
    return request.waiting_on


def poll_after_ms(request: Request, now: datetime) -> int | None:
    """When to look again: soon while an answer may come any moment, later while it is known to wait; in few steps,
    so that the answer to a poll does not change with each passing second. None once nothing more will come."""
    if is_ended(request.state):
        return None
    if request.ahead is not None or request.dispatched_at is None:
        return min(max(request.ahead or 1, 1) * _POLL_MS_PER_TURN_AHEAD, _POLL_MS_MAX)
    if request.waiting_on is not None:
        return _POLL_MS_BY_WAIT.get(request.waiting_on, _POLL_MS)
    running_seconds = (now - request.dispatched_at).total_seconds()
    if running_seconds < _YOUNG_SECONDS:
        return _POLL_MS_YOUNG
    return _POLL_MS if running_seconds < _SETTLED_SECONDS else _POLL_MS_OLD


def retry_after(poll_ms: int | None) -> dict[str, str]:
    """The same in the header's whole seconds."""
    return {} if poll_ms is None else {"Retry-After": str(math.ceil(poll_ms / 1000))}


def change_of(shown: RequestView) -> str:
    """A digest of everything but the hint when to look again: what a client that waits for a change waits for."""
    body = shown.model_dump_json(exclude={"poll_after_ms"})
    return hashlib.sha256(body.encode()).hexdigest()[:32]


def etag_of(shown: RequestView, change: str) -> str:
    """Strong: the hint is part of the body, so it is part of the tag."""
    return f'"{change}-{shown.poll_after_ms or 0}"'


def change_in(if_none_match: list[str], change: str) -> bool:
    """Whether the client has seen this change, whatever hint came with it."""
    return any(f'"{change}-' in value for value in if_none_match)


def _summary(request: Request) -> dict[str, Any]:
    return {
        "id": request.id,
        "session_id": request.session_id,
        "seq": request.seq,
        "status": request.state,
        "waiting_on": waiting_on(request),
        "model": request.model,
        "metadata": request.metadata,
        "cancel_requested_at": request.cancel_requested_at,
        "created_at": request.accepted_at,
        "deadline_at": request.deadline_at,
        "started_at": request.started_at,
        "ended_at": request.ended_at,
    }


def _output_view(output: Output) -> OutputView:
    return OutputView(text=output.text, items=output.items, finish_reason=output.finish_reason)


def _usage_view(usage: Usage) -> UsageView:
    return UsageView(**usage.model_dump(), total_tokens=usage.total_tokens)


def _charge_view(charge: Charge) -> ChargeView:
    return ChargeView(state=charge.state, tokens=charge.tokens, reason=charge.reason, at=charge.at)
