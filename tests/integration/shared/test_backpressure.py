"""What is published while the broker reads nothing, as in a memory alarm: no more of it is kept than a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from shared.contracts.billing import Eligibility, EligibilityChanged
from shared.contracts.gateway import RequestsMoved
from shared.messaging import publisher as publishing
from shared.messaging.broker import Broker
from shared.messaging.publisher import Publisher
from tests.support.bus import bus, eventually
from tests.support.counted import counted

QUEUE = "gateway.eligibility"
BATCH = 100
TRIES = 20
HINTS = 20_000
LONG = "x" * 16_384
"""Long enough for many of them to be more than the buffers of the sockets hold."""


@dataclass
class Tap:
    """Between a process and its broker: closed, nothing goes to the broker any more, and all it says still comes."""

    url: str
    open: asyncio.Event = field(default_factory=asyncio.Event)
    _copies: set[asyncio.Task[None]] = field(default_factory=set)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = urlsplit(self.url)
        up_reader, up_writer = await asyncio.open_connection(target.hostname, target.port)
        for copying in (self._copy(reader, up_writer, self.open), self._copy(up_reader, writer)):
            copy = asyncio.create_task(copying)
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event | None = None
    ) -> None:
        try:
            while chunk := await reader.read(4096):
                if gate is not None:
                    await gate.wait()
                writer.write(chunk)
                await writer.drain()
        finally:
            writer.close()

    async def close(self) -> None:
        for copy in self._copies:
            copy.cancel()
        await asyncio.gather(*self._copies, return_exceptions=True)


@asynccontextmanager
async def tapped(amqp_url: str) -> AsyncIterator[tuple[str, Tap]]:
    """Its URL and the tap, open."""
    tap = Tap(amqp_url)
    tap.open.set()
    server = await asyncio.start_server(tap.accept, "127.0.0.1", 0)
    address = urlsplit(amqp_url)
    netloc = f"{address.username}:{address.password}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield address._replace(netloc=netloc).geturl(), tap
    await tap.close()
    server.close()


@pytest.fixture
async def tap(amqp_url: str) -> AsyncIterator[tuple[Publisher, Tap]]:
    async with tapped(amqp_url) as (url, tap):
        broker = Broker(url, service="test", settle_seconds=0)
        publisher = Publisher(broker)
        await broker.start()
        await publisher.start()
        yield publisher, tap
        tap.open.set()
        await publisher.stop()
        await broker.stop()


def fact(sequence: int) -> EligibilityChanged:
    eligibility = Eligibility(decision="ALLOW", reasons=(LONG,))
    at = datetime(2026, 11, 1, tzinfo=UTC)
    return EligibilityChanged(account_id="acct_1", sequence=sequence, eligibility=eligibility, decided_at=at)


async def test_hints_that_the_broker_does_not_take_are_dropped(tap: tuple[Publisher, Tap]) -> None:
    publisher, line = tap
    line.open.clear()

    def published(outcome: str) -> float:
        return counted("messages_published", type=RequestsMoved.type, outcome=outcome)

    sent, dropped = published("sent"), published("dropped")
    for number in range(HINTS):
        publisher.send(RequestsMoved(request_ids=(f"{number:04096}",)))
        if number % BATCH == 0:
            await asyncio.sleep(0.02)
    assert published("sent") - sent < HINTS / 4
    assert published("dropped") - dropped > HINTS / 4


async def test_what_is_tried_again_and_again_does_not_pile_up(
    amqp_url: str, tap: tuple[Publisher, Tap], monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, line = tap
    monkeypatch.setattr(publishing, "_CONFIRM_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(publishing, "_UNCONFIRMED_MAX", BATCH)
    assert await publisher.publish_each([fact(0)]) == ["confirmed"]
    line.open.clear()
    for _ in range(TRIES):
        outcomes = await publisher.publish_each([fact(number) for number in range(1, BATCH + 1)])
        assert set(outcomes) == {"unconfirmed"}
    monkeypatch.undo()
    line.open.set()

    async def is_confirmed() -> bool:
        return await publisher.publish_each([fact(BATCH + 1)]) == ["confirmed"]

    await eventually(is_confirmed)
    async with bus(amqp_url) as beside:
        assert await beside.count(QUEUE) < TRIES * BATCH / 2
