"""The SQL by itself: claims, fences, the words of the CHECKs, and that every statement runs."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast, get_args

import pytest

from services.orchestrator.limiter import Ledger, Limits, Place, Placed
from services.orchestrator.records import AttemptEnd, AttemptStart, Conclusion, NewTask
from services.orchestrator.store import AttemptStore, BucketStore, EndingStore, TaskStore, WorkerStore
from services.orchestrator.task import (
    NEXT,
    WORKERS_LOST_BEFORE_ALONE,
    WORKERS_LOST_MAX,
    AttemptOutcome,
    FailureKind,
    Finish,
    State,
    Task,
    Wait,
    ending,
)
from shared.contracts.content import Outcome, WaitingOn
from shared.contracts.gateway import SessionRequested
from shared.contracts.orchestrator import AttemptRecord
from shared.postgres import Connection, Database, DatabaseRefused
from tests.component.orchestrator.driver import command
from tests.support.planning import Listening, index_conditions

NOW = datetime.now(UTC)
MIGRATION = Path(__file__).parents[3] / "services/orchestrator/migrations/0001_create_tasks.sql"


@dataclass
class Stores:
    database: Database
    tasks: TaskStore
    attempts: AttemptStore
    buckets: BucketStore
    endings: EndingStore
    workers: WorkerStore

    async def insert(self, *tasks: NewTask) -> set[str]:
        async with self.database.transaction() as connection:
            return await self.tasks.insert_tasks_if_absent(connection, tasks)

    async def start(self, *starts: AttemptStart) -> set[str]:
        async with self.database.transaction() as connection:
            return await self.attempts.insert_attempts_if_fence(connection, starts)

    async def claim(self, worker_id: str, limit: int = 10) -> list[Task]:
        return await self.tasks.update_tasks_claimed_if_due_or_lost(
            worker_id, limit, WORKERS_LOST_MAX, alone_from=WORKERS_LOST_BEFORE_ALONE
        )


@pytest.fixture
def stores(database: Database) -> Stores:
    return Stores(
        database,
        TaskStore(database),
        AttemptStore(database),
        BucketStore(database),
        EndingStore(database),
        WorkerStore(database),
    )


def standing(asked: SessionRequested, *, due: datetime = NOW, decision_id: str | None = "dec_1") -> NewTask:
    return NewTask(asked, "backing_off", asked.deadline_at, 10, decision_id, wait=Wait("retry_backoff", due))


def first_attempt(asked: SessionRequested, fence: int = 1, attempt: int = 1) -> AttemptStart:
    return AttemptStart(asked.request_id, fence, attempt, "main", "openai", "m", 10, None, NOW)


def started(asked: SessionRequested, worker_id: str) -> NewTask:
    return NewTask(asked, "running", asked.deadline_at, 10, "dec_1", worker_id=worker_id, start=first_attempt(asked))


def finished(asked: SessionRequested, fence: int) -> Conclusion:
    ended = ending(Task(asked), Finish("completed"), NOW)
    return Conclusion(asked.request_id, fence, "finished", ending=ended)


def words(column: str) -> set[str]:
    found = re.search(rf"CHECK \({column} IN\s*\(([^)]*)\)", MIGRATION.read_text())
    assert found is not None, column
    return set(re.findall(r"'(\w+)'", found[1]))


def test_the_database_knows_the_same_words_as_the_code() -> None:
    assert words("state") == set(NEXT) == set(get_args(State))
    assert words("waiting_on") == set(get_args(WaitingOn))
    outcomes = [
        set(re.findall(r"'(\w+)'", found)) for found in re.findall(r"outcome IN \(([^)]*)\)", MIGRATION.read_text())
    ]
    kinds = set(get_args(FailureKind))
    stops = {word for part in get_args(AttemptOutcome) for word in (get_args(part) or (part,))}
    assert outcomes == [set(get_args(Outcome)), kinds | stops]


async def test_of_two_workers_that_claim_at_the_same_time_each_task_has_one(stores: Stores) -> None:
    asked = [command() for _ in range(20)]
    await stores.insert(*[standing(one) for one in asked])
    for worker_id in ("wrk_a", "wrk_b"):
        await stores.workers.insert_worker(worker_id, 60)
    claims = await asyncio.gather(*(stores.claim(worker_id, 6) for worker_id in ("wrk_a", "wrk_b") * 3))
    taken = [task.request_id for claim in claims for task in claim]
    assert len(taken) == len(set(taken)) == 20
    assert {task.fence for claim in claims for task in claim} == {2}


async def test_what_is_not_due_is_not_claimed_and_is_known_to_be_next(stores: Stores) -> None:
    due = datetime.now(UTC) + timedelta(minutes=5)
    await stores.insert(standing(command(), due=due), standing(command(), due=due + timedelta(minutes=1)))
    await stores.workers.insert_worker("wrk_a", 60)
    assert await stores.claim("wrk_a") == []
    assert await stores.tasks.select_next_due() == due


async def test_a_worker_whose_lease_has_ended_claims_inserts_and_revives_nothing(stores: Stores) -> None:
    asked = command()
    await stores.insert(standing(asked))
    await stores.workers.insert_worker("wrk_a", -1)
    assert await stores.claim("wrk_a") == []
    assert await stores.insert(started(command(), "wrk_a")) == set()
    assert not await stores.workers.update_lease_if_unexpired("wrk_a", 60)
    assert await stores.claim("wrk_a") == []


async def test_the_tasks_of_a_live_worker_are_not_claimed(stores: Stores) -> None:
    for worker_id in ("wrk_a", "wrk_b"):
        await stores.workers.insert_worker(worker_id, 60)
    await stores.insert(started(command(), "wrk_a"))
    assert await stores.claim("wrk_b") == []


async def test_a_lost_task_comes_with_its_ledger_closed(stores: Stores) -> None:
    asked = command()
    await stores.workers.insert_worker("wrk_a", 60)
    await stores.workers.insert_worker("wrk_b", 60)
    await stores.insert(started(asked, "wrk_a"))
    await stores.workers.update_lease_ended("wrk_a")
    (task,) = await stores.claim("wrk_b")
    assert (task.command, task.fence, task.workers_lost, task.decision_id) == (asked, 2, 1, "dec_1")
    assert [(attempt.attempt, attempt.outcome) for attempt in task.attempts] == [(1, "worker_lost")]


async def test_an_attempt_needs_the_fence_the_next_number_and_a_permit(stores: Stores) -> None:
    permitted, unpermitted = command(), command()
    await stores.insert(standing(permitted), standing(unpermitted, decision_id=None))
    await stores.workers.insert_worker("wrk_a", 60)
    await stores.claim("wrk_a")
    assert await stores.start(first_attempt(permitted, fence=1)) == set()
    assert await stores.start(first_attempt(permitted, fence=2, attempt=2)) == set()
    assert await stores.start(first_attempt(unpermitted, fence=2)) == set()
    assert await stores.start(first_attempt(permitted, fence=2)) == {permitted.request_id}
    # The same again is what a retry after a lost answer sends.
    assert await stores.start(first_attempt(permitted, fence=2)) == set()
    assert await stores.database.fetchval("SELECT count(*) FROM attempts") == 1


async def test_the_end_is_written_once_and_only_under_the_fence(stores: Stores) -> None:
    asked = command()
    await stores.workers.insert_worker("wrk_a", 60)
    await stores.insert(started(asked, "wrk_a"))
    assert await stores.attempts.update_tasks_concluded_if_fence([finished(asked, fence=9)], {}) == set()
    assert await stores.attempts.update_tasks_concluded_if_fence([finished(asked, fence=1)], {}) == {asked.request_id}
    assert await stores.attempts.update_tasks_concluded_if_fence([finished(asked, fence=1)], {}) == set()


async def test_a_conclusion_settles_its_bucket_and_closes_it(stores: Stores) -> None:
    limits = {"openai": Limits(tokens_per_minute=100)}
    asked = [command() for _ in range(3)]
    await stores.workers.insert_worker("wrk_a", 60)
    await stores.insert(*[started(one, "wrk_a") for one in asked])
    await stores.database.execute("INSERT INTO buckets (name, tokens) VALUES ('openai', 40)")
    closed = [NOW + timedelta(seconds=seconds) for seconds in (5, 9, 2)]
    ends = [
        AttemptEnd(one.request_id, 1, record_of(one), "openai", tokens_back=back, closed_until=until)
        for one, back, until in zip(asked, (10, 20, 90), closed, strict=True)
    ]
    conclusions = [
        Conclusion(one.request_id, 1, "backing_off", end=end, wait=Wait("provider_rate_limit", closed[1]))
        for one, end in zip(asked, ends, strict=True)
    ]
    assert len(await stores.attempts.update_tasks_concluded_if_fence(conclusions, limits)) == 3
    row = await stores.database.fetchrow("SELECT tokens, closed_until FROM buckets")
    assert row is not None
    assert (row["tokens"], row["closed_until"]) == (100, closed[1])
    assert await stores.database.fetchval("SELECT count(*) FROM attempts WHERE outcome = 'rate_limited'") == 3


async def test_replicas_that_place_calls_at_once_share_what_a_bucket_holds(stores: Stores) -> None:
    await stores.database.execute("INSERT INTO buckets (name, refilled_at, requests) VALUES ('openai', $1, 8)", NOW)
    limits = {"openai": Limits(requests_per_minute=60)}

    async def is_placed() -> bool:
        async with stores.database.transaction() as connection:
            rows = await stores.buckets.select_buckets_for_update(connection, ["openai"])
            ledger = Ledger(rows, limits, NOW)
            # Each keeps its place in the queue, so that only the level decides.
            placement = ledger.place([Place("main", "openai")], 1, queued=True)
            await stores.buckets.update_buckets(connection, ledger.changed())
        return isinstance(placement, Placed)

    placed = await asyncio.gather(*(is_placed() for _ in range(20)))
    assert sum(placed) == 8


def record_of(_: SessionRequested) -> AttemptRecord:
    return AttemptRecord(
        attempt=1,
        deployment="main",
        provider="openai",
        upstream_model="m",
        started_at=NOW,
        ended_at=NOW,
        outcome="rate_limited",
    )


async def test_a_second_insert_of_the_same_request_changes_nothing(stores: Stores) -> None:
    asked = command()
    assert await stores.insert(standing(asked)) == {asked.request_id}
    assert await stores.insert(standing(asked)) == set()


async def test_waits_for_the_same_reason_after_the_same_attempt_are_one(stores: Stores) -> None:
    asked = command()
    await stores.insert(standing(asked))
    await stores.workers.insert_worker("wrk_a", 60)
    for turn in range(3):
        (task,) = await stores.claim("wrk_a")
        assert task.waited_for == "retry_backoff"
        again = Conclusion(asked.request_id, task.fence, "backing_off", wait=Wait("retry_backoff", NOW))
        assert await stores.attempts.update_tasks_concluded_if_fence([again], {}) == {asked.request_id}
        assert len(task.waits) == 1, turn
    assert task.waits[0].until > task.waits[0].since


async def test_a_state_without_what_belongs_to_it_is_refused(stores: Stores) -> None:
    asked = command()
    await stores.insert(standing(asked))
    for change in ("state = 'finished'", "state = 'running'", "due_at = NULL", "outcome = 'failed'", "state = 'lost'"):
        with pytest.raises(DatabaseRefused):
            await stores.database.execute(f"UPDATE tasks SET {change}")


async def test_old_finished_tasks_are_forgotten_once_their_ending_is_out(stores: Stores) -> None:
    asked = [command() for _ in range(3)]
    await stores.workers.insert_worker("wrk_a", 60)
    await stores.insert(*[started(one, "wrk_a") for one in asked])
    conclusions = [finished(one, fence=1) for one in asked[:2]]
    await stores.attempts.update_tasks_concluded_if_fence(conclusions, {})
    await stores.database.execute("UPDATE tasks SET finished_at = now() - interval '8 days' WHERE state = 'finished'")
    assert await stores.endings.delete_tasks_if_published(7, 100) == 0
    (owed, _) = await stores.endings.select_endings_owed(10)
    await stores.endings.update_endings_published([owed])
    assert await stores.endings.delete_tasks_if_published(7, 100) == 1
    left = {row["request_id"] for row in await stores.database.fetch("SELECT request_id FROM tasks")}
    assert owed.subject not in left
    assert len(left) == 2


async def test_workers_long_gone_are_forgotten_unless_a_task_names_them(stores: Stores) -> None:
    await stores.workers.insert_worker("wrk_a", 60)
    await stores.workers.insert_worker("wrk_b", 60)
    await stores.insert(started(command(), "wrk_a"))
    await stores.database.execute("UPDATE workers SET expires_at = now() - interval '2 hours'")
    await stores.workers.delete_workers_if_gone()
    assert [row["id"] for row in await stores.database.fetch("SELECT id FROM workers")] == ["wrk_a"]


async def test_counts_are_of_unfinished_tasks_and_open_attempts(stores: Stores) -> None:
    await stores.workers.insert_worker("wrk_a", 60)
    await stores.insert(started(command(), "wrk_a"), standing(command()))
    assert await stores.tasks.select_counts() == {"running": 1, "backing_off": 1, "attempts": 1}
    assert await stores.tasks.select_count_waiting(10) == 0


HOT_QUERIES: Sequence[tuple[str, str]] = (
    ("SELECT min(due_at) FROM tasks WHERE state IN ('waiting', 'backing_off')", "tasks_due"),
    ("SELECT request_id FROM tasks WHERE worker_id = 'w' AND state = 'running'", "tasks_running_by_worker"),
    ("SELECT 1 FROM tasks WHERE session_id = 's' AND seq > 3", "tasks_by_session"),
    ("SELECT 1 FROM tasks WHERE session_id = 's' AND seq < 3 AND state <> 'finished'", "tasks_"),
    (
        "SELECT 1 FROM tasks WHERE state IN ('waiting', 'backing_off') AND deadline_at <= now()",
        "tasks_standing_by_deadline",
    ),
    (
        "SELECT ending FROM tasks WHERE state = 'finished' AND ended_published_at IS NULL ORDER BY finished_at LIMIT 1",
        "tasks_owed",
    ),
)


@pytest.mark.parametrize(("query", "index"), HOT_QUERIES)
async def test_hot_queries_have_their_index(stores: Stores, query: str, index: str) -> None:
    async with stores.database.transaction() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {query}"))
    assert index in plan


async def test_marks_hand_backs_and_cancels_of_the_same_tasks_lock_them_in_one_order(stores: Stores) -> None:
    """In any other, two of these would wait for each other, and one be ended for it after a second."""
    await stores.workers.insert_worker("wrk_a", 600)
    chance = random.Random(5)
    for _ in range(15):
        asked = [command() for _ in range(100)]
        for one in chance.sample(asked, len(asked)):  # where they lie in the table says nothing of their ids
            await stores.insert(started(one, "wrk_a"))
        ids = sorted(one.request_id for one in asked)

        async def cancel(of: list[str]) -> None:
            async with stores.database.transaction() as connection:
                await stores.endings.select_tasks_for_update(connection, of, at=NOW)

        await asyncio.gather(cancel(ids), stores.workers.update_tasks_handed_back_if_held("wrk_a"))
        claimed = await stores.claim("wrk_a", len(ids))
        conclusions = [finished(next(one for one in asked if one.request_id == task.request_id), 3) for task in claimed]
        assert len(await stores.attempts.update_tasks_concluded_if_fence(conclusions, {})) == len(ids)
        endings = [conclusion.ending for conclusion in conclusions if conclusion.ending]
        chance.shuffle(endings)
        await asyncio.gather(cancel(ids), stores.endings.update_endings_published(endings))


async def test_a_conclusion_finds_its_task_by_its_id_even_when_planned_on_empty_tables(database: Database) -> None:
    listening = Listening()
    await AttemptStore(cast("Database", listening)).update_tasks_concluded_if_fence([], {})
    await AttemptStore(cast("Database", listening)).insert_attempts_if_fence(cast("Connection", listening), [])
    for sql in listening.statements:
        conditions = await index_conditions(database, sql)
        assert {index for index, _ in conditions} <= {
            "tasks_pkey",
            "attempts_in_flight",
            "attempts_pkey",
            "buckets_pkey",
        }
        assert all(condition for _, condition in conditions), conditions
