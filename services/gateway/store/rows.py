"""Rows of requests: as their owners see them, and as the commands that are made of them."""

from __future__ import annotations

from typing import Final

from pydantic_core import from_json

from services.gateway.records import Abandoned, Request, Turn
from shared.contracts.billing import Charge
from shared.contracts.results import ResultEnded
from shared.postgres import Record

REQUEST_COLUMNS: Final = """
    r.id, r.account_id, r.session_id, r.seq, r.state, r.model, r.metadata, r.accepted_at, r.deadline_at,
    r.dispatched_at, r.waiting_on, r.started_at, r.cancel_requested_at, r.abandoned_at, r.abandon_code, r.ended_at,
    r.end_heard_at
"""
"""Of requests r, without what came of them."""

TURN_COLUMNS: Final = """
    r.id, r.account_id, r.session_id, r.seq, r.input, r.settings, r.model, s.instructions, r.accepted_at, r.deadline_at,
    r.traceparent
"""
"""Of requests r joined with its session s."""

ABANDON_COLUMNS: Final = "r.abandon_code, r.abandoned_at"

AFTER_ALL_IDS: Final = "zz"
"""Ids begin with the letters of their kind: this comes after each of them under any collation."""

LOCKED_IN_ORDER: Final = "(SELECT q.id FROM requests q WHERE q.id = ANY($1) ORDER BY q.id FOR UPDATE)"
"""Of the requests $1. Every statement that changes several locks them so, after their sessions: two that met in
different orders would stand still for a second, until PostgreSQL ends one of them; a join alone keeps no order."""


def request_of(row: Record, result: ResultEnded | None = None) -> Request:
    """Of REQUEST_COLUMNS, and of `result`, `charge` and `ahead` where the row has them; a `result` may be known."""
    fields = {**row, "metadata": from_json(row["metadata"])}
    if result is not None:
        fields["result"] = result
    elif fields.get("result") is not None:
        fields["result"] = ResultEnded.model_validate_json(fields["result"])
    if fields.get("charge") is not None:
        fields["charge"] = Charge.model_validate_json(fields["charge"])
    return Request(**fields)


def turn_of(row: Record) -> Turn:
    return Turn(
        request_id=row["id"],
        account_id=row["account_id"],
        session_id=row["session_id"],
        seq=row["seq"],
        input_json=row["input"],
        settings_json=row["settings"],
        model=row["model"],
        instructions=row["instructions"],
        accepted_at=row["accepted_at"],
        deadline_at=row["deadline_at"],
        traceparent=row["traceparent"],
    )


def abandoned_of(row: Record) -> Abandoned | None:
    """The proposed ending, where the row has one."""
    if row["abandoned_at"] is None:
        return None
    return Abandoned(turn_of(row), row["abandon_code"], row["abandoned_at"])
