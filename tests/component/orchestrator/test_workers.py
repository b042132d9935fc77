"""Workers that die, hang, lose their lease or leave: their tasks go on, and nothing they still say is heard."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from services.orchestrator.config import Settings
from services.orchestrator.task import WORKERS_LOST_MAX
from shared.contracts.gateway import SessionRequested
from shared.runtime import App
from tests.component.orchestrator.conftest import LEASE_SECONDS
from tests.component.orchestrator.driver import Orchestrator, cancel_of, command, running
from tests.support.bus import eventually
from tests.support.counted import counted


async def leave_with_a_dead_worker(
    orchestrator: Orchestrator, asked: SessionRequested, *, workers_lost: int = 0, attempts: int = 1
) -> None:
    """As if a worker had died in the middle of an attempt of this task."""
    await orchestrator.database.execute(
        "INSERT INTO workers (id, expires_at) VALUES ('wrk_dead', now() - interval '1 s') ON CONFLICT DO NOTHING"
    )
    await orchestrator.database.execute(
        """
        INSERT INTO tasks (request_id, account_id, session_id, seq, state, command, tokens, decision_id, fence,
                           worker_id, workers_lost, attempts, deadline_at)
        VALUES ($1, $2, $3, $4, 'running', $5::json, 100, 'dec_1', 7, 'wrk_dead', $6, $7, $8)
        """,
        asked.request_id,
        asked.account_id,
        asked.session_id,
        asked.seq,
        asked.model_dump_json(),
        workers_lost,
        attempts,
        asked.deadline_at,
    )
    if attempts:
        await orchestrator.database.execute(
            """
            INSERT INTO attempts (request_id, attempt, fence, deployment, provider, upstream_model, tokens_reserved,
                                  started_at)
            VALUES ($1, $2, 7, 'default', 'openai', 'm', 100, now() - interval '5 s')
            """,
            asked.request_id,
            attempts,
        )


async def expire_all_leases(orchestrator: Orchestrator) -> None:
    await orchestrator.database.execute("UPDATE workers SET expires_at = now() - interval '1 s'")


async def test_the_task_of_a_dead_worker_goes_on_under_a_new_fence(surroundings: Orchestrator) -> None:
    asked = command("[[orphan]]")
    await leave_with_a_dead_worker(surroundings, asked)
    async with running(surroundings.settings):
        (ended,) = await surroundings.ended()
    assert (ended.status, ended.final_attempt) == ("completed", 2)
    assert [attempt.outcome for attempt in ended.attempts] == ["worker_lost", "succeeded"]
    task = await surroundings.task(asked)
    assert (task["fence"], task["workers_lost"]) == (8, 1)
    # Its hold stands: billing is not asked again.
    assert surroundings.peers.holds == []


async def test_a_task_that_lost_too_many_workers_fails_without_another_call(surroundings: Orchestrator) -> None:
    asked = command("[[cursed]]")
    await leave_with_a_dead_worker(surroundings, asked, workers_lost=WORKERS_LOST_MAX - 1)
    async with running(surroundings.settings):
        (ended,) = await surroundings.ended()
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "worker_lost")
    assert await surroundings.llm.calls(marker="cursed") == []


async def test_a_task_that_lost_two_workers_runs_alone(surroundings: Orchestrator) -> None:
    suspects = [command(f"{number} [[suspect]]") for number in range(2)]
    for suspect in suspects:
        await leave_with_a_dead_worker(surroundings, suspect, workers_lost=1)
    await surroundings.llm.close_gate("g", "suspect")
    async with running(surroundings.settings):
        await surroundings.llm.wait("held >= 1", marker="suspect")
        await surroundings.send(*[command(f"{number} [[innocent]]") for number in range(3)])
        # Neither the other suspect nor the innocent are taken on beside it.
        await asyncio.sleep(1.5)
        assert (await surroundings.llm.ask("GET", "/counters"))["in_flight"] == 1
        await surroundings.llm.open_gate("g")
        ended = await surroundings.ended(5)
    assert {one.status for one in ended} == {"completed"}


async def test_a_dead_workers_cancelled_task_ends_without_another_call(surroundings: Orchestrator) -> None:
    asked = command("[[flagged]]")
    await leave_with_a_dead_worker(surroundings, asked)
    await surroundings.database.execute("UPDATE tasks SET cancel_requested_at = now()")
    async with running(surroundings.settings):
        (ended,) = await surroundings.ended()
    assert (ended.status, [attempt.outcome for attempt in ended.attempts]) == ("cancelled", ["worker_lost"])
    assert await surroundings.llm.calls(marker="flagged") == []


@pytest.mark.usefixtures("quick_beats")
async def test_a_worker_whose_lease_ended_cuts_its_calls_and_comes_back_under_a_new_id(
    orchestrator: Orchestrator,
) -> None:
    asked = command("[[zombie]]")
    await orchestrator.llm.close_gate("g", "zombie")
    await orchestrator.send(asked)
    await orchestrator.llm.wait("held >= 1", marker="zombie")
    (first,) = await orchestrator.database.fetch("SELECT id FROM workers")
    await expire_all_leases(orchestrator)
    await orchestrator.llm.wait("client_gone >= 1", marker="zombie")
    await orchestrator.llm.open_gate("g")
    (ended,) = await orchestrator.ended()
    assert ended.status == "completed"
    # It knew that it had stopped the call, so the task was handed back and no worker counts as lost.
    assert [attempt.outcome for attempt in ended.attempts] == ["handed_back", "succeeded"]
    assert (await orchestrator.task(asked))["workers_lost"] == 0
    alive = await orchestrator.database.fetch("SELECT id FROM workers WHERE expires_at > now()")
    assert [row["id"] for row in alive] != [first["id"]]
    assert len(alive) == 1


async def test_what_a_worker_says_under_an_old_fence_is_refused(orchestrator: Orchestrator) -> None:
    asked, refused_before = command("[[fenced]]"), counted("zombie_writes")
    await orchestrator.llm.close_gate("g", "fenced")
    await orchestrator.send(asked)
    await orchestrator.llm.wait("held >= 1", marker="fenced")
    # Somebody else has it now, and this worker has not noticed yet.
    await orchestrator.database.execute(
        "INSERT INTO workers (id, expires_at) VALUES ('wrk_other', now() + interval '1 hour')"
    )
    await orchestrator.database.execute("UPDATE tasks SET fence = fence + 1, worker_id = 'wrk_other'")
    await orchestrator.llm.open_gate("g")

    async def is_refused() -> bool:
        return counted("zombie_writes") > refused_before

    await eventually(is_refused)
    task = await orchestrator.task(asked)
    assert (task["state"], task["worker_id"], task["ending"]) == ("running", "wrk_other", None)
    # The healthy end: the other worker dies, and the task is claimed back.
    await orchestrator.database.execute("UPDATE workers SET expires_at = now() WHERE id = 'wrk_other'")
    (ended,) = await orchestrator.ended()
    assert ended.status == "completed"


@pytest.mark.usefixtures("quick_beats")
async def test_a_task_that_nobody_runs_is_handed_back_by_the_heartbeat(orchestrator: Orchestrator) -> None:
    asked = command("[[nobody]]")
    await leave_with_a_dead_worker(orchestrator, asked, attempts=0)
    (alive,) = await orchestrator.database.fetch("SELECT id FROM workers WHERE expires_at > now()")
    await orchestrator.database.execute(
        "UPDATE tasks SET worker_id = $1, fence = fence + 1 WHERE state = 'running'", alive["id"]
    )
    (ended,) = await orchestrator.ended()
    assert ended.status == "completed"


@pytest.mark.usefixtures("quick_beats")
async def test_another_replica_stops_a_cancelled_call_at_its_next_heartbeat(surroundings: Orchestrator) -> None:
    asked = command("[[far]]")
    await surroundings.llm.close_gate("g", "far")
    async with running(surroundings.settings):
        await surroundings.send(asked)
        await surroundings.llm.wait("held >= 1", marker="far")
        # As another replica's handler writes it.
        await surroundings.database.execute("UPDATE tasks SET cancel_requested_at = now()")
        (ended,) = await surroundings.ended()
    assert (ended.status, [attempt.outcome for attempt in ended.attempts]) == ("cancelled", ["cancelled"])


async def test_a_drained_worker_finishes_what_fits_and_hands_back_the_rest(surroundings: Orchestrator) -> None:
    quick, slow = command("quick [[quick]]"), command("slow [[slow]]")
    for marker in ("quick", "slow"):
        await surroundings.llm.close_gate(marker, marker)
    async with running(surroundings.settings.model_copy(update={"drain_seconds": LEASE_SECONDS})) as app:
        await surroundings.send(quick, slow)
        for marker in ("quick", "slow"):
            await surroundings.llm.wait("held >= 1", marker=marker)
        draining = asyncio.create_task(end_the_drain_after_one(surroundings, app))
    await draining
    (ended,) = await surroundings.ended()
    assert (ended.request_id, ended.status) == (quick.request_id, "completed")
    task = await surroundings.task(slow)
    assert (task["state"], task["worker_id"]) == ("waiting", None)
    assert await surroundings.database.fetchval("SELECT count(*) FROM workers WHERE expires_at > now()") == 0
    await surroundings.llm.open_gate("slow")
    async with running(surroundings.settings):
        later = (await surroundings.ended(2))[1]
    assert later.status == "completed"
    assert [attempt.outcome for attempt in later.attempts] == ["handed_back", "succeeded"]


async def end_the_drain_after_one(orchestrator: Orchestrator, app: App) -> None:
    """The quick call may end once nothing more is taken in; when it has ended the time for the drain is over."""

    async def nobody_consumes() -> bool:
        declared = await orchestrator.bus.channel.declare_queue("orchestrator.requests", passive=True)
        return declared.declaration_result.consumer_count == 0

    await eventually(nobody_consumes)
    await orchestrator.llm.open_gate("quick")
    await orchestrator.ended()
    for resource in app.resources:
        resource.hurry()


async def test_two_workers_share_the_work_and_nothing_runs_twice(surroundings: Orchestrator) -> None:
    settings: Settings = surroundings.settings.model_copy(update={"slots": 3})
    asked = [command(f"{number} [[shared]]") for number in range(20)]
    async with running(settings), running(settings):
        await surroundings.send(*asked)
        ended = await surroundings.ended(20)
    assert {one.request_id for one in ended} == {one.request_id for one in asked}
    assert {one.status for one in ended} == {"completed"}
    assert len(await surroundings.llm.calls(marker="shared")) == 20


async def test_a_waiting_task_ends_at_its_deadline_even_when_no_slot_is_free(surroundings: Orchestrator) -> None:
    await surroundings.llm.close_gate("g", "busy")
    async with running(surroundings.settings.model_copy(update={"slots": 1})):
        await surroundings.send(command("[[busy]]"))
        await surroundings.llm.wait("held >= 1", marker="busy")
        late = command()
        await surroundings.send(late)
        await surroundings.has_state(late, "waiting", "capacity")
        await surroundings.database.execute(
            "UPDATE tasks SET deadline_at = now() WHERE request_id = $1", late.request_id
        )
        (ended,) = await surroundings.ended()
        assert ended.error is not None
        assert (ended.request_id, ended.error.code) == (late.request_id, "deadline_exceeded")
        assert [wait.reason for wait in ended.waits] == ["capacity"]
        await surroundings.llm.open_gate("g")


async def test_a_cancel_between_two_attempts_ends_the_wait(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("case", {"kind": "status", "status": 429, "retry_after_seconds": 300})
    asked = command("[[case]]")
    await orchestrator.send(asked)
    await orchestrator.has_state(asked, "backing_off", "provider_rate_limit")
    await orchestrator.send(cancel_of(asked))
    (ended,) = await orchestrator.ended()
    assert (ended.status, ended.usage) == ("cancelled", None)
    assert [attempt.outcome for attempt in ended.attempts] == ["rate_limited"]
    assert [(wait.reason, wait.after_attempt) for wait in ended.waits] == [("provider_rate_limit", 1)]


@pytest.mark.usefixtures("quick_beats")
async def test_a_turn_taken_in_while_the_lease_ran_out_is_not_called(surroundings: Orchestrator) -> None:
    asked = command("[[slow_intake]]")
    await surroundings.llm.close_gate("slow", "slow_intake")

    async def is_waiting_for_the_bucket() -> bool:
        query = (
            "SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(await surroundings.database.fetchval(query))

    async with running(surroundings.settings) as app:
        # The bucket's lock keeps the transaction of the intake open, the worker's row keeps the heartbeat away.
        async with surroundings.database.transaction() as connection:
            await connection.execute("SELECT FROM buckets FOR UPDATE")
            await surroundings.send(asked)
            await eventually(is_waiting_for_the_bucket)
            async with surroundings.database.transaction() as other:
                await other.execute("UPDATE workers SET expires_at = now()")
                await surroundings.lease_ends(app)
        await surroundings.llm.wait("held == 1", marker="slow_intake")
        assert await surroundings.database.fetchval(
            "SELECT bool_and(expires_at > now()) FROM workers JOIN tasks ON worker_id = id"
        )
        await surroundings.llm.open_gate("slow")
        (ended,) = await surroundings.ended()
    assert ended.status == "completed"


async def test_a_cancel_that_meets_a_task_on_its_way_to_a_long_wait_does_not_wait(orchestrator: Orchestrator) -> None:
    asked = command("[[cancelled_at_a_limit]]")
    await orchestrator.llm.script("cancelled_at_a_limit", {"kind": "status", "status": 429, "retry_after_seconds": 300})
    await orchestrator.llm.close_gate("limit", "cancelled_at_a_limit")
    await orchestrator.send(asked)
    await orchestrator.llm.wait("held == 1", marker="cancelled_at_a_limit")
    # As another replica flags it, just before this one has its answer.
    await orchestrator.database.execute("UPDATE tasks SET cancel_requested_at = now()")
    await orchestrator.llm.open_gate("limit")
    (ended,) = await orchestrator.ended()
    assert ended.status == "cancelled"
    assert ended.ended_at < ended.attempts[0].ended_at + timedelta(seconds=300), "it did not wait for the provider"
