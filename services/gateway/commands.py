"""The messages that the gateway owes, made of rows: the same row makes the same message every time."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from pydantic import TypeAdapter
from pydantic_core import from_json

from services.gateway.records import Abandoned, Turn
from shared.contracts.content import CallSettings, Failure, Item
from shared.contracts.gateway import SessionAbandoned, SessionCancelRequested, SessionRequested

_ITEMS: Final = TypeAdapter(tuple[Item, ...])
_FAILURES: Final = {
    "input_too_large": Failure(code="input_too_large", message="The input is larger than what can be handed on."),
    "cancelled": Failure(code="cancelled", message="It was cancelled before it started."),
    "deadline_exceeded": Failure(code="deadline_exceeded", message="It did not end before its deadline."),
}


def session_requested(turn: Turn, grace: timedelta) -> SessionRequested:
    settings = from_json(turn.settings_json) | {"model": turn.model, "instructions": turn.instructions}
    return SessionRequested(
        request_id=turn.request_id,
        account_id=turn.account_id,
        session_id=turn.session_id,
        seq=turn.seq,
        input=_ITEMS.validate_json(turn.input_json),
        settings=CallSettings.model_validate(settings),
        accepted_at=turn.accepted_at,
        deadline_at=turn.deadline_at,
        grace_seconds=grace.total_seconds(),
        traceparent=turn.traceparent,
    )


def session_cancel_requested(turn: Turn) -> SessionCancelRequested:
    return SessionCancelRequested(
        request_id=turn.request_id,
        account_id=turn.account_id,
        session_id=turn.session_id,
        seq=turn.seq,
        traceparent=turn.traceparent,
    )


def session_abandoned(abandoned: Abandoned) -> SessionAbandoned:
    turn = abandoned.turn
    return SessionAbandoned(
        request_id=turn.request_id,
        account_id=turn.account_id,
        session_id=turn.session_id,
        seq=turn.seq,
        status="cancelled" if abandoned.code == "cancelled" else "failed",
        error=_FAILURES[abandoned.code],
        accepted_at=turn.accepted_at,
        abandoned_at=abandoned.at,
        traceparent=turn.traceparent,
    )
