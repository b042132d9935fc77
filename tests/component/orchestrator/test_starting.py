"""Attempts of several replicas on one bucket: their rows are in the order of the debits, and a closing comes first."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.orchestrator.limiter import ComeBack
from services.orchestrator.records import AttemptEnd, AttemptStart, NewTask
from services.orchestrator.routing import Deployment, Model, Models, Routing
from services.orchestrator.starting import Question, Starting
from services.orchestrator.store import AttemptStore, BucketStore, TaskStore, WorkerStore
from shared.contracts.gateway import SessionRequested
from shared.contracts.orchestrator import AttemptRecord
from shared.postgres import Database
from tests.component.orchestrator.driver import command
from tests.support.clock import FakeClock

MAIN = Deployment(name="main", provider="openai", model="m", quota_domain="openai", requests_per_minute=60)


@pytest.fixture
async def running(database: Database) -> list[SessionRequested]:
    """Two tasks of one worker, each in its first attempt."""
    await BucketStore(database).insert_buckets_if_absent(["openai"])
    await WorkerStore(database).insert_worker("wrk_a", 60)
    asked = sorted((command() for _ in range(2)), key=lambda one: one.request_id)
    tasks = [
        NewTask(one, "running", one.deadline_at, 10, "dec_1", worker_id="wrk_a", start=_first(one)) for one in asked
    ]
    async with database.transaction() as connection:
        assert len(await TaskStore(database).insert_tasks_if_absent(connection, tasks)) == 2
    return asked


def _first(asked: SessionRequested) -> AttemptStart:
    return AttemptStart(asked.request_id, 1, 1, "main", "openai", "m", 10, None, datetime.now(UTC))


def starting(database: Database, clock: FakeClock) -> Starting:
    """One replica."""
    routing = Routing(Models(models={"default": Model(deployments=(MAIN,))}))
    return Starting(database, AttemptStore(database), BucketStore(database), routing, clock)


def question(asked: SessionRequested, **fields: Any) -> Question:
    return Question(asked.request_id, 1, 2, [MAIN], 10, "dec_1", **{"queued": False, **fields})


async def test_a_replica_whose_clock_is_behind_debits_as_of_the_last_refill(
    database: Database, running: list[SessionRequested]
) -> None:
    now = datetime.now(UTC)
    ahead, behind = FakeClock(now + timedelta(seconds=1)), FakeClock(now)
    first = await starting(database, ahead).start(question(running[0]))
    second = await starting(database, behind).start(question(running[1]))
    assert isinstance(first, AttemptStart)
    assert isinstance(second, AttemptStart)
    assert first.started_at == second.started_at == ahead.now()


async def test_a_retry_after_holds_for_calls_that_ask_in_the_same_commit(
    database: Database, running: list[SessionRequested]
) -> None:
    """The one that was told comes last: who is placed before it must find the domain closed all the same."""
    clock = FakeClock(datetime.now(UTC))
    until = clock.now() + timedelta(seconds=30)
    record = AttemptRecord(
        attempt=1,
        deployment="main",
        provider="openai",
        upstream_model="m",
        started_at=clock.now(),
        ended_at=clock.now(),
        outcome="rate_limited",
        retry_after_seconds=30.0,
    )
    told = AttemptEnd(running[1].request_id, 1, record, "openai", 10, until)
    replica = starting(database, clock)
    answers = await asyncio.gather(replica.start(question(running[0])), replica.start(question(running[1], last=told)))
    assert all(isinstance(answer, ComeBack) and answer.due >= until for answer in answers), answers
    assert await database.fetchval("SELECT count(*) FROM attempts WHERE attempt = 2") == 0
