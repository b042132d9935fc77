"""What the promises are measured by: every row of every database, every message on the bus, and when all is quiet."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
from aio_pika.abc import AbstractIncomingMessage

from deploy.local.environment import SERVICES
from deploy.local.servers.find import DSN_NAMES
from deploy.local.stack import Stack
from shared.messaging.topology import QUEUES
from shared.postgres import Database
from tests.support.bus import Bus, Listener, bus
from tests.support.guard import GUARD_SECONDS

COPY: Final = "x-copy"
"""The header of what a test said again: a listener tells it from what the services say."""

Rows = dict[str, list[str]]

# What time alone changes, whatever is sent: a worker's heartbeat, how full a bucket is, how far Stripe was compared.
MOVING: Final[Mapping[str, tuple[str, ...]]] = {
    "orchestrator.workers": ("expires_at",),
    "orchestrator.buckets": ("refilled_at", "requests", "tokens"),
    "billing.cursors": ("position",),
}

_BUSY: Final = {
    "gateway": """
        SELECT count(*) FROM requests WHERE ended_at IS NULL OR requested_owed_at IS NOT NULL
            OR cancel_owed_at IS NOT NULL OR abandon_owed_at IS NOT NULL
        """,
    "orchestrator": "SELECT count(*) FROM tasks WHERE state <> 'finished' OR ended_published_at IS NULL",
    "billing": """
        SELECT (SELECT count(*) FROM stripe_events WHERE state IN ('received', 'failed'))
             + (SELECT count(*) FROM eligibilities WHERE published_sequence < sequence)
        """,
}
_HANDLED: Final = re.compile(
    r'^parley_messages_handled_total\{queue="([\w.]+)",verdict="(?:acked|parked|dropped)"\} (\S+)', re.MULTILINE
)
_SETTLE_SECONDS: Final = 2 * GUARD_SECONDS
_STILL_POLLS: Final = 5
_POLL_SECONDS: Final = 0.1


@dataclass
class Evidence:
    """A plain connection to the bus that hears everything, and one to each database."""

    stack: Stack
    http: aiohttp.ClientSession
    bus: Bus
    tap: Listener
    databases: Mapping[str, Database]
    handled_before: Counter[str] = field(default_factory=Counter)

    @property
    def said(self) -> list[AbstractIncomingMessage]:
        """What the services have published since the start, in the order of its arrival."""
        return [incoming for incoming in self.tap.heard if COPY not in incoming.headers]

    def said_ids(self, *types: str, since: int = 0) -> set[str]:
        """The `ce-id`s of these types among what was said after the first `since` messages."""
        return {str(incoming.headers["ce-id"]) for incoming in self.said[since:] if str(incoming.routing_key) in types}

    async def say_again(self, incoming: AbstractIncomingMessage) -> None:
        """The same bytes under the same id, as a redelivery or a second publish has them."""
        headers = {**incoming.headers, COPY: 1}
        await self.bus.send_raw(str(incoming.routing_key), incoming.body, headers, incoming.content_type)

    async def rows(self) -> Rows:
        """Every row of every table, but for the columns that move by themselves."""
        dumps = await asyncio.gather(*(self._rows_of(service) for service in self.databases))
        return {table: rows for dump in dumps for table, rows in dump.items()}

    async def still(self) -> None:
        """Return once nothing moves any more, by what can be seen without having heard how it began."""
        unmoved, handled = 0, await self.handled()
        async with asyncio.timeout(_SETTLE_SECONDS):
            while unmoved < _STILL_POLLS:
                await asyncio.sleep(_POLL_SECONDS)
                waiting = [await self.bus.count(queue.name) for queue in QUEUES]
                before, handled = handled, await self.handled()
                is_still = await self._busy() == [0, 0, 0] and not any(waiting) and handled == before
                unmoved = unmoved + 1 if is_still else 0

    async def quiet(self, *, running: int = 0) -> None:
        """Return once every message is handled, nothing is owed, no event is left to look at, and no more requests
        are open than those that the test keeps running."""
        calm = 0
        async with asyncio.timeout(_SETTLE_SECONDS):
            # Twice in a row: a publish may be on its way while its row is still read.
            while calm < 2:
                calm = calm + 1 if await self._is_quiet(running) else 0
                await asyncio.sleep(_POLL_SECONDS)

    async def metrics(self) -> dict[str, str]:
        """The page of every process of every service."""
        names = [name for name in self.stack.processes if name.partition("-")[0] in SERVICES]
        return dict(zip(names, await asyncio.gather(*(self._page(name) for name in names)), strict=True))

    async def _page(self, name: str) -> str:
        async with self.http.get(f"{self.stack.ops_url(name)}/metrics") as response:
            return await response.text()

    async def _is_quiet(self, running: int) -> bool:
        busy = await self._busy()
        # A running request has its row in the gateway and in the orchestrator.
        expected = [running, running, 0]
        handled = await self.handled() - self.handled_before
        heard = Counter(
            queue.name for incoming in self.tap.heard for queue in QUEUES if incoming.routing_key in queue.bindings
        )
        return busy == expected and handled == heard

    async def _busy(self) -> list[int]:
        counts: list[int] = await asyncio.gather(
            *(self.databases[service].fetchval(sql) for service, sql in _BUSY.items())
        )
        return counts

    async def handled(self) -> Counter[str]:
        """Verdicts so far, by queue, over all replicas."""
        counts: Counter[str] = Counter()
        for page in (await self.metrics()).values():
            for queue, count in _HANDLED.findall(page):
                counts[queue] += int(float(count))
        return counts

    async def _rows_of(self, service: str) -> Rows:
        database, dump = self.databases[service], {}
        tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        for (table,) in tables:
            name = f"{service}.{table}"
            rows = await database.fetch(
                f"SELECT (to_jsonb(t) - $1::text[])::text FROM {table} t ORDER BY 1", list(MOVING.get(name, ()))
            )
            dump[name] = [str(row[0]) for row in rows]
        return dump


@asynccontextmanager
async def gather_evidence(stack: Stack, http: aiohttp.ClientSession) -> AsyncIterator[Evidence]:
    """From the moment on at which nothing of what was begun before is under way any more."""
    async with AsyncExitStack() as held:
        databases = {}
        for service, name in DSN_NAMES.items():
            databases[service] = Database(stack.urls[name], service="promises", pool_max=2)
            await databases[service].start()
            held.push_async_callback(databases[service].stop)
        beside = await held.enter_async_context(bus(stack.urls["AMQP_URL"]))
        evidence = Evidence(stack, http, beside, Listener(), databases)
        await evidence.still()
        evidence.tap = await beside.listen("#")
        evidence.handled_before = await evidence.handled()
        yield evidence


def changed(before: Rows, after: Rows) -> dict[str, list[str]]:
    """What differs, by table: `-` is gone, `+` is new. Empty where the two are equal."""
    return {
        table: [f"- {row}" for row in Counter(before[table]) - Counter(after[table])]
        + [f"+ {row}" for row in Counter(after[table]) - Counter(before[table])]
        for table in before.keys() | after.keys()
        if before[table] != after[table]
    }


def growth(before: Rows, after: Rows) -> dict[str, int]:
    """How many rows each table has gained; but for the log, where a text is cut into deltas by the clock."""
    grown = {table: len(after[table]) - len(before[table]) for table in after if table != "results.log_events"}
    return {table: count for table, count in grown.items() if count}


def parsed(rows: Rows, table: str) -> list[dict[str, Any]]:
    return [json.loads(row) for row in rows[table]]
