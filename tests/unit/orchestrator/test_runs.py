"""Slots, and how a run is cut short."""

from __future__ import annotations

import asyncio

import pytest

from services.orchestrator.runs import Cut, Run, Runs
from services.orchestrator.task import Task
from tests.support.guard import GUARD_SECONDS
from tests.unit.orchestrator.test_task import COMMAND


def run_of(number: int, **fields: object) -> Run:
    command = COMMAND.model_copy(update={"request_id": f"req_{number}"})
    return Run(Task(command, **fields))  # type: ignore[arg-type]


async def until(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_cut_stops_what_the_run_waits_for() -> None:
    run = run_of(1)
    waiting = asyncio.create_task(run.interruptible(asyncio.Event().wait()))
    await asyncio.sleep(0)
    run.cut("cancelled")
    with pytest.raises(Cut) as cut:
        await waiting
    assert cut.value.reason == "cancelled"


async def test_a_run_that_was_cut_starts_nothing_more() -> None:
    run = run_of(1)
    run.cut("deadline")
    with pytest.raises(Cut):
        await run.interruptible(asyncio.sleep(0))


async def test_what_arrived_before_the_cut_counts() -> None:
    run = run_of(1)

    async def answer() -> str:
        return "here"

    waiting = asyncio.create_task(run.interruptible(answer()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    run.cut("cancelled")
    assert await waiting == "here"


async def test_the_first_reason_counts_but_lost_is_lost() -> None:
    run = run_of(1)
    run.cut("cancelled")
    run.cut("deadline")
    assert not run.lost
    run.cut("lost")
    assert run.lost
    run.cut("cancelled")
    assert run.lost


async def test_cancelling_the_runs_own_task_is_no_cut() -> None:
    run = run_of(1)
    waiting = asyncio.create_task(run.interruptible(asyncio.Event().wait()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_slots_are_taken_reserved_and_freed() -> None:
    runs, ending, freed = Runs(3), asyncio.Event(), []
    runs.on_free = lambda: freed.append(runs.free)
    with runs.reserving(2) as granted:
        assert (granted, runs.free) == (2, 1)
        runs.start(run_of(1), until(ending))
        assert runs.free == 0
        with runs.reserving(5) as more:
            assert more == 0
    assert runs.free == 2
    ending.set()
    await runs.until_idle()
    assert (runs.free, freed) == (3, [3])


async def test_a_later_run_of_the_same_task_makes_the_older_one_lost() -> None:
    runs, ending = Runs(3), asyncio.Event()
    older, later = run_of(1), run_of(1)
    runs.start(older, until(ending))
    runs.start(later, until(ending))
    assert older.lost
    assert runs.running["req_1"] is later
    ending.set()
    await runs.until_idle()
    assert runs.running == {}


async def test_a_suspect_waits_until_it_is_alone_and_keeps_others_out() -> None:
    runs, other_ends, alone = Runs(5), asyncio.Event(), asyncio.Event()
    suspect, release = run_of(1), asyncio.Event()

    async def work() -> None:
        async with runs.alone(suspect):
            alone.set()
            await release.wait()

    runs.start(run_of(2), until(other_ends))
    runs.start(suspect, work())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (alone.is_set(), runs.free) == (False, 0)
    other_ends.set()
    async with asyncio.timeout(GUARD_SECONDS):
        await alone.wait()
    assert list(runs.running) == ["req_1"]
    release.set()
    await runs.until_idle()
    assert runs.free == 5


async def test_two_suspects_go_one_after_the_other() -> None:
    """Each waits until nobody else works: if they waited for each other too, neither would ever begin."""
    runs, began = Runs(5), []

    async def work(suspect: Run) -> None:
        async with runs.alone(suspect):
            began.append(suspect.request_id)
            assert runs.free == 0

    for suspect in (run_of(1), run_of(2)):
        runs.start(suspect, work(suspect))
    async with asyncio.timeout(GUARD_SECONDS):
        await runs.until_idle()
    assert began == ["req_1", "req_2"]
    assert runs.free == 5
