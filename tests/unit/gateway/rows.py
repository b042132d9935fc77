"""A request as the gateway's tests have it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.gateway.records import Request

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
RUNNING = Request(
    id="req_" + "a" * 32,
    account_id="acct_" + "a" * 32,
    session_id="ses_" + "a" * 32,
    seq=2,
    state="queued",
    model="default",
    metadata={},
    accepted_at=NOW,
    deadline_at=NOW + timedelta(seconds=600),
    dispatched_at=NOW,
    waiting_on=None,
    started_at=None,
    cancel_requested_at=None,
    abandoned_at=None,
    abandon_code=None,
    ended_at=None,
)
