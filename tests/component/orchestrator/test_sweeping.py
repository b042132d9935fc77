"""Each sweep of the orchestrator at its time, not before, and counted; all clocks, the database's too, move by the
test."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from services.orchestrator.config import Settings
from tests.component.orchestrator.driver import Orchestrator, command, running
from tests.support.bus import eventually
from tests.support.clock import DatabaseTime, FakeDatabaseClock
from tests.support.counted import counted

LEASE_SECONDS = 300
LATER_SECONDS = 30
OWED_SECONDS = 5


@pytest.fixture
async def dsn(database_dsn: Callable[[str], Awaitable[str]]) -> str:
    dsn = await database_dsn("orchestrator")
    await DatabaseTime(dsn).become_movable()
    return dsn


@pytest.fixture
def clock(dsn: str, monkeypatch: pytest.MonkeyPatch) -> FakeDatabaseClock:
    """Everything in the orchestrator that asks for the time does so on this clock."""
    clock = FakeDatabaseClock(DatabaseTime(dsn))
    monkeypatch.setattr("services.orchestrator.app.DatabaseClock", lambda _: clock)
    return clock


@pytest.fixture
def patient(settings: Settings) -> Settings:
    """Its own lease outlives what a test lets pass."""
    return settings.model_copy(update={"lease_seconds": LEASE_SECONDS})


def in_time() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=4 * LATER_SECONDS)


async def moved(name: str, before: float, **labels: str) -> None:
    async def has_moved() -> bool:
        return counted(name, **labels) == before + 1

    await eventually(has_moved)


async def test_a_lost_workers_task_is_taken_over_when_its_lease_is_over(
    surroundings: Orchestrator, clock: FakeDatabaseClock, patient: Settings
) -> None:
    asked = command("[[lost]]", deadline_at=in_time())
    await surroundings.database.execute(
        f"INSERT INTO workers (id, expires_at) VALUES ('wrk_dead', now() + interval '{LATER_SECONDS} s')"
    )
    await surroundings.database.execute(
        """
        INSERT INTO tasks (request_id, account_id, session_id, seq, state, command, tokens, decision_id, fence,
                           worker_id, attempts, deadline_at)
        VALUES ($1, $2, $3, $4, 'running', $5::json, 100, 'dec_1', 1, 'wrk_dead', 0, $6)
        """,
        asked.request_id,
        asked.account_id,
        asked.session_id,
        asked.seq,
        asked.model_dump_json(),
        asked.deadline_at,
    )
    before = counted("tasks_claimed", source="lost_worker")
    async with running(patient):
        other = command()
        await surroundings.end_of(other)  # it has claimed, and left this one alone
        assert counted("tasks_claimed", source="lost_worker") == before
        await clock.advance(LATER_SECONDS + 1)
        await moved("tasks_claimed", before, source="lost_worker")
        assert {one.status for one in await surroundings.ended(2)} == {"completed"}


async def test_a_task_that_waits_for_its_provider_is_taken_up_when_it_is_due(
    surroundings: Orchestrator, clock: FakeDatabaseClock, patient: Settings
) -> None:
    asked = command("[[due]]", deadline_at=in_time())
    await surroundings.llm.script(
        "due", {"kind": "status", "status": 429, "retry_after_seconds": LATER_SECONDS}, {"kind": "ok"}
    )
    before = counted("tasks_claimed", source="provider_rate_limit")
    async with running(patient):
        await surroundings.send(asked)
        await surroundings.has_state(asked, "backing_off", "provider_rate_limit")
        assert counted("tasks_claimed", source="provider_rate_limit") == before
        await clock.advance(LATER_SECONDS + 1)
        await moved("tasks_claimed", before, source="provider_rate_limit")
        (ended,) = await surroundings.ended()
    assert ended.status == "completed"


async def test_a_task_that_stands_still_ends_at_its_deadline(
    surroundings: Orchestrator, clock: FakeDatabaseClock, patient: Settings
) -> None:
    holder = command("[[holder]]", deadline_at=in_time())
    waiting = command(deadline_at=datetime.now(UTC) + timedelta(seconds=LATER_SECONDS))
    await surroundings.llm.close_gate("g", "holder")
    before = counted("tasks_expired")
    async with running(patient.model_copy(update={"slots": 1})):
        await surroundings.send(holder)
        await surroundings.llm.wait("held >= 1", marker="holder")
        await surroundings.send(waiting)
        await surroundings.has_state(waiting, "waiting", "capacity")
        assert counted("tasks_expired") == before
        await clock.advance(LATER_SECONDS + 1)
        await moved("tasks_expired", before)
        (ended,) = await surroundings.ended()
        assert (ended.request_id, ended.status) == (waiting.request_id, "failed")
        await surroundings.llm.open_gate("g")
        await surroundings.ended(2)


async def test_an_owed_ending_is_paid_once_it_is_old(
    surroundings: Orchestrator, clock: FakeDatabaseClock, patient: Settings
) -> None:
    asked = command()

    async def marked() -> bool:
        return (await surroundings.task(asked))["ended_published_at"] is not None

    before = counted("owed_publishes_paid", owed="session_endings", payer="sweep")
    async with running(patient):
        await surroundings.end_of(asked)
        await eventually(marked)
        # As it is between the commit and the publish.
        await surroundings.database.execute("UPDATE tasks SET ended_published_at = NULL, finished_at = now()")
        await clock.advance(OWED_SECONDS + 1)
        await moved("owed_publishes_paid", before, owed="session_endings", payer="sweep")
        await surroundings.ended(2)
    assert len({incoming.body for incoming in surroundings.endings.heard}) == 1
