"""Starts attempts: places them in the buckets and writes their rows, all that ask at the same time in one commit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from services.orchestrator.limiter import ComeBack, Ledger, Placed, Placement, TooCostly
from services.orchestrator.records import AttemptEnd, AttemptStart
from services.orchestrator.routing import Deployment, Routing, places
from services.orchestrator.store import AttemptStore, BucketStore
from shared.clock import Clock
from shared.group_commit import GroupCommit
from shared.postgres import Connection, Database


@dataclass(frozen=True, slots=True)
class Question:
    """One task that wants its next attempt, somewhere among `deployments`."""

    request_id: str
    fence: int
    attempt: int
    deployments: Sequence[Deployment]
    tokens: int
    decision_id: str | None
    queued: bool
    """The task has waited for its place already."""
    last: AttemptEnd | None = None
    """The end of the attempt before, written along."""


NotOurs = Literal["not_ours"]
"""The fence has moved on, or the attempt exists already."""

Answer = AttemptStart | ComeBack | TooCostly | NotOurs


class Starting:
    """Every provider call begins here: no row, no call."""

    def __init__(
        self, database: Database, attempts: AttemptStore, buckets: BucketStore, routing: Routing, clock: Clock
    ) -> None:
        self._database = database
        self._attempts = attempts
        self._buckets = buckets
        self._routing = routing
        self._clock = clock
        self._group: GroupCommit[Question, Answer] = GroupCommit(
            "attempts_started", self._flush, key=lambda question: question.request_id
        )

    async def start(self, question: Question) -> Answer:
        return await self._group.submit(question)

    async def locked(self, connection: Connection, domains: Collection[str]) -> tuple[Ledger, datetime]:
        """The buckets of these domains, locked, as of now."""
        rows = await self._buckets.select_buckets_for_update(connection, domains) if domains else {}
        # Read after the locks, and never before the last refill, whichever replica's clock that was: so the attempts of
        # a domain start in the order of their debits, and their rows alone show that the limit was kept.
        now = max([self._clock.now(), *(row.refilled_at for row in rows.values())])
        return Ledger(rows, self._routing.limits, now), now

    async def write_back(self, connection: Connection, ledger: Ledger) -> None:
        changed = ledger.changed()
        if changed:
            await self._buckets.update_buckets(connection, changed)

    async def _flush(self, questions: Sequence[Question]) -> list[Answer]:
        domains = {place.quota_domain for question in questions for place in question.deployments}
        domains |= {question.last.domain for question in questions if question.last}
        async with self._database.transaction() as connection:
            ledger, now = await self.locked(connection, domains)
            for question in questions:
                _close(ledger, question.last)
            placements = [_place(ledger, question) for question in questions]
            answers = [
                self._start_of(question, placement.deployment, now) if isinstance(placement, Placed) else placement
                for question, placement in zip(questions, placements, strict=True)
            ]
            await self.write_back(connection, ledger)
            return await self._written(connection, questions, answers)

    async def _written(
        self,
        connection: Connection,
        questions: Sequence[Question],
        answers: Sequence[AttemptStart | ComeBack | TooCostly],
    ) -> list[Answer]:
        starts = [answer for answer in answers if isinstance(answer, AttemptStart)]
        ends = [
            question.last
            for question, answer in zip(questions, answers, strict=True)
            if question.last and isinstance(answer, AttemptStart)
        ]
        if ends:
            await self._attempts.update_attempts_ended_if_fence(connection, ends)
        written = await self._attempts.insert_attempts_if_fence(connection, starts) if starts else set()
        return [
            "not_ours" if isinstance(answer, AttemptStart) and answer.request_id not in written else answer
            for answer in answers
        ]

    def _start_of(self, question: Question, name: str, now: datetime) -> AttemptStart:
        return start_of(
            question.request_id,
            question.fence,
            question.attempt,
            self._routing.deployment(name),
            question.tokens,
            question.decision_id,
            now,
        )


def start_of(
    request_id: str,
    fence: int,
    attempt: int,
    deployment: Deployment,
    tokens: int,
    decision_id: str | None,
    at: datetime,
) -> AttemptStart:
    return AttemptStart(
        request_id, fence, attempt, deployment.name, deployment.provider, deployment.model, tokens, decision_id, at
    )


def _close(ledger: Ledger, last: AttemptEnd | None) -> None:
    """Before any call is placed: a Retry-After that this commit brings holds for all that share it."""
    if last is not None and last.closed_until is not None:
        ledger.close(last.domain, last.closed_until)


def _place(ledger: Ledger, question: Question) -> Placement:
    last = question.last
    placement = ledger.place(places(question.deployments), question.tokens, queued=question.queued)
    # Where there is no place, the end of the last attempt is written, and settled, when the task is put aside.
    if last is not None and isinstance(placement, Placed):
        ledger.give_back(last.domain, last.tokens_back)
    return placement
