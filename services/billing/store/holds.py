"""Holds, the credit they take and the ledger: where quota is given out, charged and given back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.billing.eligibility import AccountFacts, Credit
from services.billing.hold import HoldEnding, HoldState, states_before
from services.billing.store.decisions import RecordedDecision, decision_columns, facts_of
from shared.contracts.billing import Eligibility
from shared.postgres import Database, Record


@dataclass(frozen=True)
class DecidedHold:
    """A question with its decision, ready to be recorded if nothing has changed since it was made."""

    request_id: str
    account_id: str
    model: str
    expires_at: datetime
    recorded: RecordedDecision

    @property
    def period_start(self) -> datetime | None:
        decision = self.recorded.decision
        return decision.period.start if decision.permits and decision.period is not None else None

    @property
    def held_tokens(self) -> int:
        return self.recorded.decision.held_tokens if self.recorded.decision.permits else 0


@dataclass(frozen=True)
class StoredHold:
    """The row of a request, and the answer that was recorded with it (None where it ended before it was asked)."""

    request_id: str
    account_id: str
    state: HoldState
    held_tokens: int
    decision_id: str | None
    eligibility: Eligibility | None


@dataclass
class Account:
    """What a decision is made from. Who decides several adds to `usage` what he is about to hold."""

    fact_version: int
    facts: AccountFacts
    usage: dict[datetime, Credit]


@dataclass(frozen=True)
class Grant:
    """The credit account that a permitted hold needs."""

    account_id: str
    period_start: datetime
    period_end: datetime
    plan: str | None
    granted: int | None


class HoldStore:
    """`settled + held <= granted` is checked by the database after every statement here."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def select_holds(self, request_ids: Sequence[str]) -> dict[str, StoredHold]:
        rows = await self._database.fetch(
            """
            SELECT h.request_id, h.account_id, h.state, h.held_tokens, h.decision_id, d.eligibility
            FROM holds h LEFT JOIN decisions d USING (decision_id)
            WHERE h.request_id = ANY($1)
            """,
            list(request_ids),
        )
        return {row["request_id"]: _stored(row) for row in rows}

    async def select_accounts(
        self, account_ids: Sequence[str], request_ids: Sequence[str]
    ) -> tuple[dict[str, Account], list[str]]:
        """These accounts with their newest periods, and which of these requests have a row already. In one statement:
        each more would be a round trip of every request."""
        rows = await self._database.fetch(
            """
            SELECT a.account_id, e.fact_version, e.facts, c.period_start, c.granted, c.settled, c.held,
                   ARRAY(SELECT request_id FROM holds WHERE request_id = ANY($2::text[])) AS answered
            FROM unnest($1::text[]) AS a (account_id)
            LEFT JOIN eligibilities e ON e.account_id = a.account_id
            LEFT JOIN LATERAL (
                SELECT * FROM credit_accounts WHERE account_id = a.account_id ORDER BY period_start DESC LIMIT 4
            ) AS c ON true
            """,
            list(account_ids),
            list(request_ids),
        )
        accounts: dict[str, Account] = {}
        for row in rows:
            account = accounts.get(row["account_id"])
            if account is None:
                facts = AccountFacts() if row["facts"] is None else facts_of(row["facts"])
                account = accounts[row["account_id"]] = Account(row["fact_version"] or 0, facts, {})
            if row["period_start"] is not None:
                account.usage[row["period_start"]] = Credit(row["granted"], row["settled"], row["held"])
        return accounts, rows[0]["answered"] if rows else []

    async def upsert_grants(self, grants: Sequence[Grant]) -> None:
        """Open the credit account of a new period; after a change of plan, grant what the new one does. A smaller
        plan never takes back what is used or reserved already."""
        await self._database.execute(
            """
            INSERT INTO credit_accounts AS c (account_id, period_start, period_end, plan, granted)
            SELECT * FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::text[], $5::bigint[])
            ORDER BY 1, 2
            ON CONFLICT (account_id, period_start) DO UPDATE
            SET period_end = EXCLUDED.period_end,
                plan = EXCLUDED.plan,
                granted = CASE WHEN EXCLUDED.granted IS NOT NULL THEN greatest(EXCLUDED.granted, c.settled + c.held) END
            """,
            [grant.account_id for grant in grants],
            [grant.period_start for grant in grants],
            [grant.period_end for grant in grants],
            [grant.plan for grant in grants],
            [grant.granted for grant in grants],
        )

    async def insert_holds_if_new_and_current(self, asked: Sequence[DecidedHold], *, now: datetime) -> set[str]:
        """Record decisions, holds and debits in one statement; the requests for which that was done.

        Left out is a request that has a row already, one whose account's facts have changed since they were read,
        and one that no longer fits into the grant: the statement waits for the credit rows and looks again.
        """
        rows = await self._database.fetch(
            _INSERT_HOLDS,
            *decision_columns([hold.recorded for hold in asked]),
            [hold.model for hold in asked],
            [hold.period_start for hold in asked],
            [hold.held_tokens for hold in asked],
            [hold.expires_at for hold in asked],
            [str(hold.recorded.decision.reasons[0]) for hold in asked],
            now,
        )
        return {row["request_id"] for row in rows}

    async def update_hold_answered_if_never_asked(self, hold: DecidedHold) -> None:
        """A request that ended before billing was asked about it gets its one answer."""
        await self._database.execute(
            """
            WITH asked AS (
                SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[],
                                     $7::bigint[], $8::jsonb[], $9::timestamptz[])
                    AS d (decision_id, account_id, request_id, decision, eligibility, policy_version, fact_version,
                          inputs, decided_at)
            ), answered AS (
                UPDATE holds h SET decision_id = a.decision_id FROM asked a
                WHERE h.request_id = a.request_id AND h.account_id = a.account_id
                  AND h.decision_id IS NULL AND h.state <> 'held'
                RETURNING h.decision_id
            )
            INSERT INTO decisions (decision_id, account_id, request_id, decision, eligibility, policy_version,
                                   fact_version, inputs, decided_at)
            SELECT a.* FROM asked a JOIN answered USING (decision_id)
            """,
            *decision_columns([hold.recorded]),
        )

    async def update_holds_ended(self, endings: Sequence[HoldEnding], *, now: datetime) -> set[str]:
        """Settle or release, each once; the requests whose row now shows this ending or an earlier one.

        Missing is one whose row was being written at the same time: the same call again finds it.
        """
        rows = await self._database.fetch(
            _END_HOLDS,
            [ending.request_id for ending in endings],
            [ending.account_id for ending in endings],
            [str(ending.to) for ending in endings],
            [ending.tokens for ending in endings],
            [ending.reason for ending in endings],
            [ending.result for ending in endings],
            now,
            states_before(HoldState.SETTLED),
            states_before(HoldState.RELEASED),
        )
        return {row["request_id"] for row in rows}

    async def update_holds_expired_if_due(self, now: datetime, *, limit: int) -> int:
        """Give back what requests reserved that never ended in time."""
        count: int = await self._database.fetchval(
            """
            WITH due AS (
                SELECT request_id FROM holds WHERE state = 'held' AND expires_at <= $1
                ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
            ), expired AS (
                UPDATE holds h SET state = 'expired', ended_at = $1, reason = 'no_result_in_time' FROM due
                WHERE h.request_id = due.request_id AND h.state = 'held'
                RETURNING h.account_id, h.period_start, h.held_tokens
            ), freed AS (
                SELECT account_id, period_start, sum(held_tokens)::bigint AS tokens FROM expired GROUP BY 1, 2
            ), funds AS MATERIALIZED (
                SELECT c.account_id, c.period_start FROM credit_accounts c
                WHERE (c.account_id, c.period_start) IN (SELECT account_id, period_start FROM freed)
                ORDER BY c.account_id, c.period_start FOR NO KEY UPDATE
            ), credited AS (
                UPDATE credit_accounts c SET held = c.held - f.tokens
                FROM funds JOIN freed f USING (account_id, period_start)
                WHERE c.account_id = f.account_id AND c.period_start = f.period_start
            )
            SELECT count(*) FROM expired
            """,
            now,
            limit,
        )
        return count


def _stored(row: Record) -> StoredHold:
    return StoredHold(
        request_id=row["request_id"],
        account_id=row["account_id"],
        state=HoldState(row["state"]),
        held_tokens=row["held_tokens"],
        decision_id=row["decision_id"],
        eligibility=Eligibility.model_validate_json(row["eligibility"]) if row["eligibility"] else None,
    )


# `funds` waits for the credit rows and returns what is committed by then, so `fits` compares with the truth. Requests
# of one account are admitted in order until the first that does not fit. The hold is inserted first: only what was
# really inserted is debited and has its decision recorded.
_INSERT_HOLDS: Final = """
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::bigint[],
                             $8::jsonb[], $9::timestamptz[], $10::text[], $11::timestamptz[], $12::bigint[],
                             $13::timestamptz[], $14::text[])
            AS a (decision_id, account_id, request_id, decision, eligibility, policy_version, fact_version, inputs,
                  decided_at, model, period_start, held_tokens, expires_at, reason)
    ), funds AS MATERIALIZED (
        SELECT c.account_id, c.period_start, c.granted - c.settled - c.held AS free
        FROM credit_accounts c
        WHERE (c.account_id, c.period_start) IN (SELECT account_id, period_start FROM asked)
        ORDER BY c.account_id, c.period_start
        FOR NO KEY UPDATE
    ), admitted AS MATERIALIZED (
        SELECT a.*
        FROM (
            SELECT asked.*, sum(held_tokens) OVER (
                PARTITION BY asked.account_id, asked.period_start ORDER BY request_id) AS running_tokens
            FROM asked
        ) a
        LEFT JOIN eligibilities e ON e.account_id = a.account_id
        LEFT JOIN funds f ON f.account_id = a.account_id AND f.period_start = a.period_start
        WHERE coalesce(e.fact_version, 0) = a.fact_version
          AND (a.period_start IS NULL
               OR (f.account_id IS NOT NULL AND (f.free IS NULL OR a.running_tokens <= f.free)))
    ), inserted AS (
        INSERT INTO holds (request_id, account_id, decision_id, model, period_start, held_tokens, state, expires_at,
                           created_at, ended_at, reason)
        SELECT request_id, account_id, decision_id, model, period_start, held_tokens,
               CASE WHEN period_start IS NULL THEN 'released' ELSE 'held' END,
               expires_at, decided_at,
               CASE WHEN period_start IS NULL THEN $15::timestamptz END,
               CASE WHEN period_start IS NULL THEN reason END
        FROM admitted ORDER BY request_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, account_id, period_start, held_tokens
    ), debits AS (
        SELECT account_id, period_start, sum(held_tokens)::bigint AS tokens
        FROM inserted WHERE period_start IS NOT NULL GROUP BY 1, 2
    ), debited AS (
        UPDATE credit_accounts c SET held = c.held + d.tokens FROM debits d
        WHERE c.account_id = d.account_id AND c.period_start = d.period_start
    ), recorded AS (
        INSERT INTO decisions (decision_id, account_id, request_id, decision, eligibility, policy_version,
                               fact_version, inputs, decided_at)
        SELECT decision_id, a.account_id, request_id, decision, eligibility, policy_version, fact_version, inputs,
               decided_at
        FROM admitted a JOIN inserted USING (request_id)
    )
    SELECT request_id FROM inserted
"""

# `before` waits for the hold rows, `funds` for their credit rows; each holds what is committed by then. `paid` is what
# fits into the grant once the reservations of this batch are given back; the rest of a charge is a debt.
_END_HOLDS: Final = """
    WITH ended AS MATERIALIZED (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[])
            AS e (request_id, account_id, state, tokens, reason, result)
    ), created AS (
        INSERT INTO holds (request_id, account_id, held_tokens, state, created_at, ended_at, result, reason,
                           charged_tokens)
        SELECT request_id, account_id, 0, state, $7, $7, result, reason, tokens
        FROM ended ORDER BY request_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, account_id, state, charged_tokens, reason
    ), before AS MATERIALIZED (
        SELECT h.request_id, h.account_id, h.period_start, h.held_tokens, h.state, h.result
        FROM holds h
        WHERE h.request_id IN (SELECT request_id FROM ended)
        ORDER BY h.request_id
        FOR NO KEY UPDATE
    ), moving AS MATERIALIZED (
        SELECT b.request_id, b.account_id, b.period_start, e.state, e.tokens, e.reason, e.result,
               CASE WHEN b.state = 'held' THEN b.held_tokens ELSE 0 END AS freed
        FROM before b JOIN ended e USING (request_id, account_id)
        WHERE b.state = ANY(CASE e.state WHEN 'settled' THEN $8::text[] ELSE $9::text[] END)
    ), funds AS MATERIALIZED (
        SELECT c.account_id, c.period_start, c.granted - c.settled - c.held AS free
        FROM credit_accounts c
        WHERE (c.account_id, c.period_start) IN (SELECT account_id, period_start FROM moving)
        ORDER BY c.account_id, c.period_start
        FOR NO KEY UPDATE
    ), priced AS MATERIALIZED (
        SELECT m.*, CASE WHEN f.free IS NULL THEN m.tokens
                         ELSE least(m.tokens, greatest(0, f.free + sum(m.freed) OVER account
                              - (sum(m.tokens) OVER (account ORDER BY m.request_id) - m.tokens))) END::bigint AS paid
        FROM moving m
        JOIN funds f USING (account_id, period_start)
        WINDOW account AS (PARTITION BY m.account_id, m.period_start)
    ), moved AS (
        UPDATE holds h
        SET state = p.state, ended_at = $7, result = p.result, reason = p.reason, charged_tokens = p.tokens
        FROM priced p
        WHERE h.request_id = p.request_id AND h.state IN ('held', 'expired')
        RETURNING h.request_id
    ), noted AS (
        UPDATE holds h SET result = e.result
        FROM ended e JOIN before b USING (request_id, account_id)
        WHERE h.request_id = b.request_id AND h.result IS NULL
          AND b.request_id NOT IN (SELECT request_id FROM moving)
        RETURNING h.request_id, h.account_id, h.period_start, e.state, e.tokens, e.reason
    ), changes AS (
        SELECT account_id, period_start, sum(paid)::bigint AS paid, sum(freed)::bigint AS freed,
               count(*) FILTER (WHERE state = 'settled') AS charged
        FROM priced GROUP BY 1, 2
    ), credited AS (
        UPDATE credit_accounts c
        SET settled = c.settled + x.paid, held = c.held - x.freed, requests_charged = c.requests_charged + x.charged
        FROM changes x
        WHERE c.account_id = x.account_id AND c.period_start = x.period_start
    ), written AS (
        INSERT INTO ledger (request_id, kind, account_id, period_start, tokens, reason, at)
        SELECT request_id, 'charge', account_id, period_start, paid, reason, $7 FROM priced WHERE state = 'settled'
        UNION ALL
        SELECT request_id, 'debt', account_id, period_start, tokens - paid, reason, $7 FROM priced WHERE tokens > paid
        UNION ALL
        SELECT request_id, 'debt', account_id, NULL, charged_tokens, reason, $7 FROM created
        WHERE state = 'settled' AND charged_tokens > 0
        UNION ALL
        SELECT request_id, 'late', account_id, period_start, tokens, reason, $7 FROM noted WHERE tokens > 0
    )
    SELECT request_id FROM created
    UNION ALL
    SELECT b.request_id FROM before b JOIN ended e USING (request_id, account_id)
"""
