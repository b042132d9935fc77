"""Answers to `may this request run`: decide, hold and debit together, the same answer for every repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from services.billing.eligibility import Ask, Credit, Decision, decide
from services.billing.policy import Policy
from services.billing.reasons import Reason
from services.billing.store.decisions import DecisionStore, RecordedDecision
from services.billing.store.holds import Account, DecidedHold, Grant, HoldStore, StoredHold
from shared.clock import Clock
from shared.contracts.billing import HoldReply, HoldRequest
from shared.errors import Transient
from shared.group_commit import GroupCommit
from shared.ids import new_id
from shared.metrics import counter
from shared.postgres import Database

_ROUNDS_MAX: Final = 8
"""A round is repeated only for what others changed in between, and each of them finished."""

_answered = counter("billing_holds_answered", "Answers to holds.", ("decision", "reason"))


class Holding:
    """Group-committed over all calls in flight. A repeat of a request finds its row and gets its answer."""

    def __init__(
        self, database: Database, holds: HoldStore, decisions: DecisionStore, policy: Policy, clock: Clock
    ) -> None:
        self._database = database
        self._holds = holds
        self._decisions = decisions
        self._policy = policy
        self._clock = clock
        self._group: GroupCommit[HoldRequest, HoldReply] = GroupCommit(
            "holds", self._flush, key=lambda asked: asked.request_id, items_max=256
        )

    async def answer(self, asked: Sequence[HoldRequest]) -> list[HoldReply]:
        """In the order of the questions."""
        replies = await asyncio.gather(*(self._group.submit(hold) for hold in asked))
        for reply in replies:
            _answered.labels(reply.eligibility.decision, reply.eligibility.reasons[0]).inc()
        return replies

    async def _flush(self, asked: Sequence[HoldRequest]) -> list[HoldReply]:
        replies: dict[str, HoldReply] = {}
        for _ in range(_ROUNDS_MAX):
            left = [hold for hold in asked if hold.request_id not in replies]
            if not left:
                return [replies[hold.request_id] for hold in asked]
            replies |= await self._round(left)
        raise Transient("holds are contended: ask again")

    async def _round(self, asked: Sequence[HoldRequest]) -> dict[str, HoldReply]:
        accounts, answered = await self._holds.select_accounts(
            sorted({hold.account_id for hold in asked}), [hold.request_id for hold in asked]
        )
        stored = await self._holds.select_holds(answered) if answered else {}
        fresh = [hold for hold in asked if hold.request_id not in stored]
        replies = await self._answer_stored([hold for hold in asked if hold.request_id in stored], stored)
        if not fresh:
            return replies
        decided = self._decide_all(fresh, accounts)
        await self._open_credit(decided)
        definite = [hold for hold in decided if hold.recorded.decision.verdict != "INDETERMINATE"]
        inserted = await self._holds.insert_holds_if_new_and_current(definite, now=self._clock.now())
        replies |= {hold.request_id: _reply(hold) for hold in definite if hold.request_id in inserted}
        undecided = [hold for hold in decided if hold.recorded.decision.verdict == "INDETERMINATE"]
        return replies | await self._record_without_hold(undecided)

    def _decide_all(self, asked: Sequence[HoldRequest], accounts: Mapping[str, Account]) -> list[DecidedHold]:
        """One after the other, each against what those before it leave."""
        now = self._clock.now()
        decided = []
        for hold in asked:
            account = accounts[hold.account_id]
            question = Ask(hold.tokens, hold.model, degraded=True)
            decision = decide(account.facts, self._policy, now, account.usage, question)
            decided.append(self._decided(hold, account.fact_version, decision, question, dict(account.usage), now))
            if decision.permits and decision.period is not None:
                start = decision.period.start
                credit = account.usage.get(start, Credit(decision.granted_tokens, 0, 0))
                account.usage[start] = replace(credit, held=credit.held + decision.held_tokens)
        return decided

    def _decided(
        self,
        hold: HoldRequest,
        fact_version: int,
        decision: Decision,
        question: Ask,
        usage: Mapping[datetime, Credit],
        now: datetime,
    ) -> DecidedHold:
        recorded = RecordedDecision(
            decision_id=new_id("dec"),
            account_id=hold.account_id,
            request_id=hold.request_id,
            decision=decision,
            policy_version=self._policy.version,
            fact_version=fact_version,
            usage=usage,
            asked=question,
            decided_at=now,
        )
        return DecidedHold(hold.request_id, hold.account_id, hold.model, hold.expires_at, recorded)

    async def _open_credit(self, decided: Sequence[DecidedHold]) -> None:
        """Credit accounts that are missing, or that still grant what another plan did."""
        grants: dict[tuple[str, datetime], Grant] = {}
        for hold in decided:
            decision, period = hold.recorded.decision, hold.recorded.decision.period
            if not decision.permits or period is None:
                continue
            credit = hold.recorded.usage.get(period.start)
            if credit is None or credit.granted != _granted(decision, credit):
                grants.setdefault(
                    (hold.account_id, period.start),
                    Grant(hold.account_id, period.start, period.end, decision.plan, decision.granted_tokens),
                )
        if grants:
            await self._holds.upsert_grants([grants[key] for key in sorted(grants)])

    async def _record_without_hold(self, undecided: Sequence[DecidedHold]) -> dict[str, HoldReply]:
        """INDETERMINATE is no answer: it is recorded, and the same question later is a new one."""
        if undecided:
            async with self._database.transaction() as connection:
                await self._decisions.insert_decisions(connection, [hold.recorded for hold in undecided])
        return {hold.request_id: _reply(hold) for hold in undecided}

    async def _answer_stored(
        self, asked: Sequence[HoldRequest], stored: Mapping[str, StoredHold]
    ) -> dict[str, HoldReply]:
        replies: dict[str, HoldReply] = {}
        for hold in asked:
            row = stored[hold.request_id]
            if row.account_id != hold.account_id:
                replies |= await self._record_without_hold([self._refused(hold, Reason.ACCOUNT_MISMATCH)])
            elif row.decision_id is None or row.eligibility is None:
                # Answered by the next round, from the row that this leaves.
                await self._holds.update_hold_answered_if_never_asked(self._refused(hold, Reason.HOLD_ENDED))
            else:
                replies[hold.request_id] = HoldReply(
                    request_id=hold.request_id,
                    decision_id=row.decision_id,
                    eligibility=row.eligibility,
                    held_tokens=row.held_tokens,
                )
        return replies

    def _refused(self, hold: HoldRequest, reason: Reason) -> DecidedHold:
        question = Ask(hold.tokens, hold.model, degraded=True)
        return self._decided(hold, 0, Decision("DENY", (reason,)), question, {}, self._clock.now())


def _granted(decision: Decision, credit: Credit) -> int | None:
    """What the credit account must say: the plan's quota, never less than what is used or reserved already."""
    return None if decision.granted_tokens is None else max(decision.granted_tokens, credit.settled + credit.held)


def _reply(hold: DecidedHold) -> HoldReply:
    return HoldReply(
        request_id=hold.request_id,
        decision_id=hold.recorded.decision_id,
        eligibility=hold.recorded.decision.eligibility(),
        held_tokens=hold.held_tokens,
    )
