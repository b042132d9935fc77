"""Rows of requests as the commands that are made of them."""

from __future__ import annotations

from typing import Final

from services.gateway.records import Abandoned, Turn
from shared.postgres import Record

TURN_COLUMNS: Final = """
    r.id, r.account_id, r.session_id, r.seq, r.input, r.settings, r.model, s.instructions, r.accepted_at, r.deadline_at,
    r.traceparent
"""
"""Of requests r joined with its session s."""

ABANDON_COLUMNS: Final = "r.abandon_code, r.abandoned_at"


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
