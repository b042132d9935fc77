"""Decisions, append-only; and for each account the one in force, with the publish it owes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pydantic import TypeAdapter

from services.billing.eligibility import AccountFacts, Ask, Credit, Decision, Usage
from shared.contracts.billing import Eligibility, EligibilityChanged
from shared.contracts.message import Message
from shared.postgres import Connection, Database, Record

_FACTS: Final = TypeAdapter(AccountFacts)


@dataclass(frozen=True)
class InForce:
    """An account's facts and the decision last recorded about it; `eligibility` is None before the first."""

    account_id: str
    fact_version: int
    facts: AccountFacts
    sequence: int
    eligibility: Eligibility | None
    decided_at: datetime | None
    policy_version: str | None


@dataclass(frozen=True)
class RecordedDecision:
    """A decision with what it was made from: enough to make it again."""

    decision_id: str
    account_id: str
    request_id: str | None
    decision: Decision
    policy_version: str
    fact_version: int
    usage: Usage
    asked: Ask
    decided_at: datetime

    def inputs_json(self) -> str:
        """What `fact_version` and `policy_version` do not lead to."""
        return json.dumps(
            {
                "tokens": self.asked.tokens,
                "model": self.asked.model,
                "degraded": self.asked.degraded,
                "usage": {
                    start.isoformat(): [credit.granted, credit.settled, credit.held]
                    for start, credit in self.usage.items()
                },
            }
        )


class DecisionStore:
    """`eligibilities` is locked before an account's facts or decision change."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def select_in_force(self, account_ids: Sequence[str]) -> dict[str, InForce]:
        rows = await self._database.fetch(f"{_SELECT_IN_FORCE} WHERE account_id = ANY($1)", list(account_ids))
        return {row["account_id"]: _in_force(row) for row in rows}

    async def insert_in_force_if_absent_and_lock(self, connection: Connection, account_id: str) -> InForce:
        await connection.execute(
            """
            INSERT INTO eligibilities (account_id, fact_version, facts) VALUES ($1, 0, $2::jsonb)
            ON CONFLICT (account_id) DO NOTHING
            """,
            account_id,
            _FACTS.dump_json(AccountFacts()).decode(),
        )
        row = await connection.fetchrow(f"{_SELECT_IN_FORCE} WHERE account_id = $1 FOR NO KEY UPDATE", account_id)
        assert row is not None
        return _in_force(row)

    async def insert_fact_version(
        self, connection: Connection, account_id: str, fact_version: int, facts: AccountFacts
    ) -> None:
        await connection.execute(
            """
            WITH kept AS (
                INSERT INTO fact_versions (account_id, fact_version, facts) VALUES ($1, $2, $3::jsonb)
            )
            UPDATE eligibilities SET fact_version = $2, facts = $3::jsonb
            WHERE account_id = $1 AND fact_version = $2 - 1
            """,
            account_id,
            fact_version,
            _FACTS.dump_json(facts).decode(),
        )

    async def insert_decisions(self, connection: Connection, decisions: Sequence[RecordedDecision]) -> None:
        await connection.execute(
            """
            INSERT INTO decisions (decision_id, account_id, request_id, decision, eligibility, policy_version,
                                   fact_version, inputs, decided_at)
            SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::bigint[],
                                 $8::jsonb[], $9::timestamptz[])
            """,
            *decision_columns(decisions),
        )

    async def update_decision_in_force(
        self, connection: Connection, recorded: RecordedDecision, *, sequence: int
    ) -> None:
        await connection.execute(
            """
            UPDATE eligibilities
            SET sequence = $2, decision_id = $3, eligibility = $4::jsonb, decided_at = $5, valid_until = $6,
                policy_version = $7
            WHERE account_id = $1 AND sequence < $2
            """,
            recorded.account_id,
            sequence,
            recorded.decision_id,
            recorded.decision.eligibility().model_dump_json(),
            recorded.decided_at,
            recorded.decision.valid_until,
            recorded.policy_version,
        )

    async def update_decision_confirmed(
        self, connection: Connection, account_id: str, policy_version: str, valid_until: datetime | None
    ) -> None:
        """The same answer by the present rules: nothing to tell anybody."""
        await connection.execute(
            "UPDATE eligibilities SET policy_version = $2, valid_until = $3 WHERE account_id = $1",
            account_id,
            policy_version,
            valid_until,
        )

    async def select_accounts_due(self, now: datetime, *, limit: int) -> list[str]:
        """Accounts whose decision time alone may have changed."""
        rows = await self._database.fetch(
            "SELECT account_id FROM eligibilities WHERE valid_until <= $1 ORDER BY valid_until LIMIT $2", now, limit
        )
        return [row["account_id"] for row in rows]

    async def select_usage(self, account_ids: Sequence[str]) -> dict[str, dict[datetime, Credit]]:
        """The newest periods of each account."""
        rows = await self._database.fetch(_SELECT_USAGE, sorted(set(account_ids)))
        return _usage_by_account(rows)

    async def select_usage_within(self, connection: Connection, account_id: str) -> dict[datetime, Credit]:
        return _usage_by_account(await connection.fetch(_SELECT_USAGE, [account_id])).get(account_id, {})

    async def select_changes_owed(self, limit: int) -> list[Message]:
        """Decisions that nobody was told of and that are too old to be on their way."""
        rows = await self._database.fetch(
            """
            SELECT account_id, sequence, eligibility, decided_at FROM eligibilities
            WHERE published_sequence < sequence AND decided_at < clock_timestamp() - interval '5 seconds'
            ORDER BY decided_at LIMIT $1
            """,
            limit,
        )
        return [
            EligibilityChanged(
                account_id=row["account_id"],
                sequence=row["sequence"],
                eligibility=Eligibility.model_validate_json(row["eligibility"]),
                decided_at=row["decided_at"],
            )
            for row in rows
        ]

    async def update_changes_published(self, messages: Sequence[Message]) -> None:
        sequences: dict[str, int] = {}
        for message in messages:
            assert isinstance(message, EligibilityChanged)
            sequences[message.account_id] = max(message.sequence, sequences.get(message.account_id, 0))
        accounts = sorted(sequences)
        await self._database.execute(
            """
            UPDATE eligibilities e SET published_sequence = p.sequence
            FROM unnest($1::text[], $2::bigint[]) AS p (account_id, sequence)
            WHERE e.account_id = p.account_id AND e.published_sequence < p.sequence
            """,
            accounts,
            [sequences[account_id] for account_id in accounts],
        )


_SELECT_IN_FORCE: Final = (
    "SELECT account_id, fact_version, facts, sequence, eligibility, decided_at, policy_version FROM eligibilities"
)

_SELECT_USAGE: Final = """
    SELECT c.account_id, c.period_start, c.granted, c.settled, c.held
    FROM unnest($1::text[]) AS a (account_id)
    CROSS JOIN LATERAL (
        SELECT * FROM credit_accounts WHERE account_id = a.account_id ORDER BY period_start DESC LIMIT 4
    ) AS c
"""


def facts_of(stored: str) -> AccountFacts:
    return _FACTS.validate_json(stored)


def decision_columns(decisions: Sequence[RecordedDecision]) -> list[list[object]]:
    """The arrays of an insert into `decisions`."""
    return [
        [recorded.decision_id for recorded in decisions],
        [recorded.account_id for recorded in decisions],
        [recorded.request_id for recorded in decisions],
        [recorded.decision.verdict for recorded in decisions],
        [recorded.decision.eligibility().model_dump_json() for recorded in decisions],
        [recorded.policy_version for recorded in decisions],
        [recorded.fact_version for recorded in decisions],
        [recorded.inputs_json() for recorded in decisions],
        [recorded.decided_at for recorded in decisions],
    ]


def _usage_by_account(rows: Iterable[Record]) -> dict[str, dict[datetime, Credit]]:
    usage: dict[str, dict[datetime, Credit]] = {}
    for row in rows:
        usage.setdefault(row["account_id"], {})[row["period_start"]] = Credit(
            row["granted"], row["settled"], row["held"]
        )
    return usage


def _in_force(row: Record) -> InForce:
    return InForce(
        account_id=row["account_id"],
        fact_version=row["fact_version"],
        facts=facts_of(row["facts"]),
        sequence=row["sequence"],
        eligibility=Eligibility.model_validate_json(row["eligibility"]) if row["eligibility"] else None,
        decided_at=row["decided_at"],
        policy_version=row["policy_version"],
    )
