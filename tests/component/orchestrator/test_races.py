"""A cancel and its own command at the same time: whichever is written first, neither holds up what came with it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from services.orchestrator.closing import Closing
from services.orchestrator.records import NewTask
from services.orchestrator.store import Arrival, TaskStore
from services.orchestrator.task import cancelled_before_arrival
from shared.contracts.gateway import SessionRequested
from shared.postgres import Database
from tests.component.orchestrator.driver import Orchestrator, cancel_of, command
from tests.support.bus import eventually
from tests.support.counted import counted
from tests.support.guard import GUARD_SECONDS


class Held:
    """Stops who comes by until the test lets it go."""

    def __init__(self) -> None:
        self.came, self.go = asyncio.Event(), asyncio.Event()

    async def here(self) -> None:
        self.came.set()
        await self.go.wait()

    async def somebody(self) -> None:
        async with asyncio.timeout(GUARD_SECONDS):
            await self.came.wait()


def paused(queue: str) -> float:
    """How many deliveries of this queue have paused in this process so far."""
    return counted("messages_handled", queue=queue, verdict="paused")


async def test_a_cancel_written_between_the_look_and_the_insert_of_its_command_pauses_nothing(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, look = Held(), TaskStore.select_arrivals

    async def look_and_wait(self: TaskStore, commands: Sequence[SessionRequested]) -> dict[str, Arrival]:
        found = await look(self, commands)
        await held.here()
        return found

    monkeypatch.setattr(TaskStore, "select_arrivals", look_and_wait)
    before = paused("orchestrator.requests")
    asked, neighbour = command("[[raced]]"), command("[[neighbour]]")
    await orchestrator.send(asked, neighbour)
    await held.somebody()
    await orchestrator.send(cancel_of(asked))
    (cancelled,) = await orchestrator.ended()
    held.go.set()
    ended = {one.request_id: one.status for one in await orchestrator.ended(3)}
    assert ended == {asked.request_id: "cancelled", neighbour.request_id: "completed"}
    # The command was answered by the ending that it found.
    bodies = [
        incoming.body for incoming in orchestrator.endings.heard if cancelled.request_id.encode() in incoming.body
    ]
    assert len(bodies) == 2
    assert len(set(bodies)) == 1
    assert await orchestrator.llm.calls(marker="raced") == []
    assert paused("orchestrator.requests") == before


async def test_a_command_written_between_the_look_and_the_insert_of_its_cancel_pauses_nothing(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, insert = Held(), Closing._insert_unknown

    async def wait_and_insert(self: Closing, *arguments: object) -> object:
        await held.here()
        return await insert(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Closing, "_insert_unknown", wait_and_insert)
    before = paused("orchestrator.cancels")
    asked, unknown = command("[[overtook]]"), command()
    await orchestrator.llm.close_gate("g", "overtook")
    await orchestrator.send(cancel_of(asked), cancel_of(unknown))
    await held.somebody()
    await orchestrator.send(asked)
    await orchestrator.llm.wait("held >= 1", marker="overtook")
    held.go.set()
    await orchestrator.llm.wait("client_gone >= 1", marker="overtook")
    ended = {one.request_id: one.status for one in await orchestrator.ended(2)}
    assert ended == {asked.request_id: "cancelled", unknown.request_id: "cancelled"}
    assert paused("orchestrator.cancels") == before


async def test_batches_that_insert_the_same_tasks_in_opposite_orders_do_not_deadlock(database: Database) -> None:
    """Between its first and its last each waits for a third one; with an order of its own each would then wait for
    what the other has written."""
    first, middle, last = sorted((command() for _ in range(3)), key=lambda asked: asked.request_id)
    tasks = TaskStore(database)

    async def insert(*asked: SessionRequested) -> set[str]:
        async with database.transaction() as connection:
            return await tasks.insert_tasks_if_absent(connection, [_finished(one) for one in asked])

    async def both_wait() -> bool:
        waiting: int = await database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return waiting == 2

    async with asyncio.TaskGroup() as group, database.transaction() as connection:
        await tasks.insert_tasks_if_absent(connection, [_finished(middle)])
        batches = [
            group.create_task(insert(first, middle, last)),
            group.create_task(insert(last, middle, first)),
        ]
        await eventually(both_wait)
    inserted = [batch.result() for batch in batches]
    assert sorted(request_id for ids in inserted for request_id in ids) == [first.request_id, last.request_id]


def _finished(asked: SessionRequested) -> NewTask:
    now = datetime.now(UTC)
    return NewTask(asked, "finished", now, ending=cancelled_before_arrival(cancel_of(asked), now))
