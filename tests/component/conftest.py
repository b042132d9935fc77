"""One service in this process, between a database, a broker and peers of the test's."""

from collections.abc import AsyncIterator

import pytest

from tests.support.servers import Vhosts


@pytest.fixture
async def amqp_url(vhosts: Vhosts) -> AsyncIterator[str]:
    """Queues that exist already spare each test the pause after their first declaration."""
    async with vhosts.with_queues() as url:
        yield url
