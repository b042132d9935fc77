"""An account's decision in force: made anew when its facts, its clock or a question ask for it, recorded if changed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.billing.eligibility import Ask, Decision, Usage, decide
from services.billing.policy import Policy
from services.billing.store.checkouts import CheckoutStore
from services.billing.store.decisions import DecisionStore, InForce, RecordedDecision
from services.billing.store.facts import FactStore
from shared.clock import Clock
from shared.contracts.billing import Eligibility, EligibilityChanged
from shared.ids import new_id
from shared.logs import get_logger
from shared.metrics import counter
from shared.postgres import Connection, Database

log = get_logger(__name__)

_changes = counter("billing_eligibility_changes", "Decisions recorded about accounts.", ("decision", "reason"))

ANY_USE: Final = Ask()
"""The question behind an account's decision: could it run anything at all?"""


@dataclass(frozen=True)
class Answer:
    """What is in force for an account; `decision` is as fresh as the question."""

    decision: Decision
    sequence: int
    decided_at: datetime


class Deciding:
    """Decides about accounts. Whoever changes a fact calls `refresh` in the same transaction."""

    def __init__(
        self,
        database: Database,
        facts: FactStore,
        decisions: DecisionStore,
        checkouts: CheckoutStore,
        policy: Policy,
        clock: Clock,
    ) -> None:
        self._database = database
        self._facts = facts
        self._decisions = decisions
        self._checkouts = checkouts
        self._policy = policy
        self._clock = clock

    async def refresh(self, connection: Connection, account_id: str) -> list[EligibilityChanged]:
        """Read the account's facts again and decide; the message owed, if the answer is another one now."""
        before = await self._decisions.insert_in_force_if_absent_and_lock(connection, account_id)
        facts = await self._facts.select_account_facts(connection, account_id)
        fact_version = before.fact_version
        if facts != before.facts:
            fact_version += 1
            await self._decisions.insert_fact_version(connection, account_id, fact_version, facts)
        usage = await self._decisions.select_usage_within(connection, account_id)
        now = self._clock.now()
        decision = decide(facts, self._policy, now, usage, ANY_USE)
        if _same_answer(before.eligibility, decision.eligibility()):
            await self._decisions.update_decision_confirmed(
                connection, account_id, self._policy.version, decision.valid_until
            )
            return []
        return [await self._record(connection, before, fact_version, decision, usage, now)]

    async def answer(self, account_id: str) -> tuple[Answer, list[EligibilityChanged]]:
        """A decision made now. It is recorded, and a message owed, where it is not the one in force."""
        row = (await self._decisions.select_in_force([account_id])).get(account_id)
        usage = (await self._decisions.select_usage([account_id])).get(account_id, {})
        if row is not None and row.eligibility is not None and row.decided_at is not None:
            decision = decide(row.facts, self._policy, self._clock.now(), usage, ANY_USE)
            if _same_answer(row.eligibility, decision.eligibility()):
                return Answer(decision, row.sequence, row.decided_at), []
        async with self._database.transaction() as connection:
            changes = await self.refresh(connection, account_id)
        row = (await self._decisions.select_in_force([account_id]))[account_id]
        assert row.decided_at is not None
        decision = decide(row.facts, self._policy, self._clock.now(), usage, ANY_USE)
        return Answer(decision, row.sequence, row.decided_at), changes

    async def _record(
        self,
        connection: Connection,
        before: InForce,
        fact_version: int,
        decision: Decision,
        usage: Usage,
        now: datetime,
    ) -> EligibilityChanged:
        recorded = RecordedDecision(
            decision_id=new_id("dec"),
            account_id=before.account_id,
            request_id=None,
            decision=decision,
            policy_version=self._policy.version,
            fact_version=fact_version,
            usage=usage,
            asked=ANY_USE,
            decided_at=now,
        )
        await self._decisions.insert_decisions(connection, [recorded])
        await self._decisions.update_decision_in_force(connection, recorded, sequence=before.sequence + 1)
        if decision.permits:
            await self._checkouts.update_checkouts_closed(connection, before.account_id)
        reason = str(decision.reasons[0])
        log.info("eligibility.changed", account_id=before.account_id, decision=decision.verdict, reason=reason)
        _changes.labels(decision.verdict, reason).inc()
        return EligibilityChanged(
            account_id=before.account_id,
            sequence=before.sequence + 1,
            eligibility=decision.eligibility(),
            decided_at=now,
        )


def _same_answer(before: Eligibility | None, now: Eligibility) -> bool:
    """What remains of the quota changes all the time and is told to whoever asks."""
    return before is not None and before.model_copy(update={"remaining": now.remaining}) == now
