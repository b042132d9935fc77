"""Batches that meet at the rows of the same requests: whoever waits, nobody waits in a circle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.results.event_log import Head
from services.results.recorder import Recorder
from services.results.store.logs import LogStore
from services.results.store.results import ResultStore
from shared.ids import new_id
from shared.postgres import Connection, Database
from tests.support.guard import GUARD_SECONDS
from tests.support.result_messages import progressed


class HeldAtItsInsert(LogStore):
    """`arrived` once it has looked for its rows; goes on at `go`; `inserted` once it has inserted what it missed."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.arrived, self.go, self.inserted = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def insert_heads_if_absent(self, connection: Connection, heads: Sequence[Head]) -> None:
        self.arrived.set()
        await self.go.wait()
        await super().insert_heads_if_absent(connection, heads)
        self.inserted.set()


async def test_two_batches_that_each_know_one_request_and_meet_another_do_not_deadlock(
    recorder: Recorder, database: Database
) -> None:
    """The late batch looks before anything is known, and inserts; the other finds the first request, and locks it."""
    known, fresh = sorted(new_id("req") for _ in range(2))
    both = [progressed(request_id, 1, ["a"], first=1) for request_id in (known, fresh)]
    late, other = HeldAtItsInsert(database), HeldAtItsInsert(database)
    async with asyncio.timeout(GUARD_SECONDS), asyncio.TaskGroup() as group:
        group.create_task(Recorder(database, late, ResultStore(database)).record_progress(both))
        await late.arrived.wait()
        await recorder.record_progress([progressed(known, 1, [])])
        group.create_task(Recorder(database, other, ResultStore(database)).record_progress(both))
        await other.arrived.wait()
        late.go.set()
        await late.inserted.wait()
        other.go.set()
    for request_id in (known, fresh):
        run = await LogStore(database).select_run(request_id, 0, 100)
        assert run is not None
        assert [event.text for event in run.events if event.text is not None] == ["a"]
