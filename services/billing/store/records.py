"""What the other services read: charges, usage, and the timeline of a request."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from shared.contracts.billing import Charge
from shared.postgres import Database, Record


@dataclass(frozen=True)
class PeriodUse:
    """A credit account as its owner may see it."""

    granted: int | None
    settled: int
    held: int
    requests_charged: int


@dataclass(frozen=True)
class RequestRecords:
    """The rows about one request; the hold's account is the request's."""

    account_id: str
    hold: Record | None
    decisions: list[Record]
    ledger: list[Record]


class RecordStore:
    """Reads only."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def select_charge(self, request_id: str, account_id: str) -> Charge | None:
        """None until the request's result has come."""
        row = await self._database.fetchrow(
            """
            SELECT request_id, CASE WHEN state = 'settled' THEN 'settled' ELSE 'released' END AS state,
                   charged_tokens AS tokens, coalesce(reason, result) AS reason, ended_at AS at
            FROM holds WHERE request_id = $1 AND account_id = $2 AND result IS NOT NULL
            """,
            request_id,
            account_id,
        )
        return Charge(**dict(row)) if row is not None else None

    async def select_period_use(self, account_id: str, period_start: datetime) -> PeriodUse | None:
        row = await self._database.fetchrow(
            """
            SELECT granted, settled, held, requests_charged FROM credit_accounts
            WHERE account_id = $1 AND period_start = $2
            """,
            account_id,
            period_start,
        )
        return PeriodUse(**dict(row)) if row is not None else None

    async def select_request_records(self, request_id: str) -> RequestRecords | None:
        """None where billing has never heard of the request. The newest decisions, should there be very many."""
        hold = await self._database.fetchrow(
            """
            SELECT account_id, decision_id, model, period_start, held_tokens, state, expires_at, created_at, ended_at,
                   result, reason, charged_tokens
            FROM holds WHERE request_id = $1
            """,
            request_id,
        )
        decisions = await self._database.fetch(
            """
            SELECT decision_id, account_id, decision, eligibility, policy_version, fact_version, decided_at
            FROM decisions WHERE request_id = $1 ORDER BY decided_at DESC, decision_id DESC LIMIT 200
            """,
            request_id,
        )
        if hold is None and not decisions:
            return None
        ledger = await self._database.fetch(
            "SELECT kind, tokens, reason, at FROM ledger WHERE request_id = $1 ORDER BY kind", request_id
        )
        owner: Any = hold["account_id"] if hold is not None else decisions[-1]["account_id"]
        made = [row for row in decisions[::-1] if row["account_id"] == owner]
        return RequestRecords(owner, hold, made, ledger)
