"""The histories of the pure log again, through the recorder and the real database."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from hypothesis import HealthCheck, given, settings

from services.results.event_log import Event
from services.results.proposal import Proposal, of_abandoned, of_ended
from services.results.recorder import Recorder
from services.results.store.logs import LogStore
from services.results.store.results import ResultStore
from shared.contracts.orchestrator import SessionProgressed
from shared.ids import new_id
from shared.postgres import Connection, Database, Record
from tests.support.log_scenarios import History, check, histories, play, winner
from tests.support.result_messages import abandoned, ended, output_of, progressed


class DatabaseWorld:
    """One request's log in the database."""

    def __init__(self, recorder: Recorder, logs: LogStore, request_id: str) -> None:
        self._recorder = recorder
        self._logs = logs
        self._request_id = request_id

    async def deliver(self, messages: Sequence[SessionProgressed]) -> None:
        if messages:
            await self._recorder.record_progress(messages)

    async def end(self, proposal: Proposal) -> None:
        await self._recorder.record_endings([proposal])

    async def read(self, after: int, limit: int) -> Sequence[Event]:
        run = await self._logs.select_run(self._request_id, after, limit)
        return run.events if run else []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories())
async def test_whatever_is_lost_repeated_or_reordered_every_reader_assembles_the_output(
    recorder: Recorder, database: Database, history: History
) -> None:
    request_id = new_id("req")
    readers = await play(history, DatabaseWorld(recorder, LogStore(database), request_id), request_id)
    check(history, readers, winner(history, request_id))


async def test_batches_that_run_at_the_same_time_leave_every_log_whole(recorder: Recorder, database: Database) -> None:
    """Forty requests, their progress and two rival endings each, in overlapping batches of every order."""
    request_ids = [new_id("req") for _ in range(40)]
    progress = [
        [progressed(request_id, 1, ["ab"[place % 2]], first=place + 1) for request_id in order]
        for place, order in enumerate(itertools.islice(itertools.cycle((request_ids, request_ids[::-1])), 8))
    ]
    endings = [of_ended(ended(request_id, output_of("abababab"))) for request_id in request_ids]
    rivals = [of_abandoned(abandoned(request_id)) for request_id in reversed(request_ids)]
    await asyncio.gather(
        *(recorder.record_progress(batch) for batch in progress),
        recorder.record_endings(endings[:25]),
        recorder.record_endings(rivals),
        recorder.record_endings(endings[15:]),
    )
    for request_id in request_ids:
        run = await LogStore(database).select_run(request_id, 0, 100)
        assert run is not None and run.closed
        assert [event.type for event in run.events if event.type.startswith("request.")] == [run.events[-1].type]
        visible = await database.fetchval("SELECT max(cursor) FROM log_events WHERE request_id = $1", request_id)
        assert visible == run.visible_cursor == run.events[-1].cursor


class CountingDatabase(Database):
    """Counts the statements of its transactions, and those on their own."""

    statements = 0

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with super().transaction() as connection:
            with connection.query_logger(self._count):
                yield connection

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        self.statements += 1
        return await super().fetch(sql, *args)

    def _count(self, _query: object) -> None:
        self.statements += 1


async def test_a_batch_of_a_hundred_requests_costs_no_more_statements_than_one_request(
    database_dsn: Callable[[str], Awaitable[str]],
) -> None:
    database = CountingDatabase(await database_dsn("results"), service="results-test", pool_max=2)
    await database.start()
    recorder = Recorder(database, LogStore(database), ResultStore(database))
    counts: list[int] = []
    for batch_size in (1, 100):  # the first round also pays for the driver's look at the types
        request_ids = [new_id("req") for _ in range(batch_size)]
        counts = []
        for texts in ([], ["a"]):
            await recorder.record_progress([progressed(request_id, 1, texts) for request_id in request_ids])
            counts.append(database.statements - sum(counts))
        await recorder.record_endings([of_ended(ended(request_id, output_of("ab"))) for request_id in request_ids])
        counts.append(database.statements - sum(counts))
        database.statements = 0
    await database.stop()
    # First heard of: lock, insert, lock, write. Then lock and write. The end: a look whether it is the first
    # word, lock, texts, result with its log.
    assert counts == [4, 2, 4]
