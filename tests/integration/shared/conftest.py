"""A process's own side of the bus and of the kernel's schema, on the real broker and database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.messaging.broker import Broker
from shared.messaging.publisher import Publisher
from shared.migrate import apply, read_migrations
from shared.postgres import Database
from tests.support.servers import Databases


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[Broker]:
    broker = Broker(amqp_url, service="test", settle_seconds=0)
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
async def publisher(broker: Broker) -> AsyncIterator[Publisher]:
    publisher = Publisher(broker)
    await publisher.start()
    yield publisher
    await publisher.stop()


@pytest.fixture
async def kernel_database(databases: Databases) -> AsyncIterator[Database]:
    """With the tables that every service has, and no service's own."""
    database = Database(await databases.empty(), service="test")
    await database.start()
    await apply(database, read_migrations("test", Path("no/such/folder")))
    yield database
    await database.stop()
