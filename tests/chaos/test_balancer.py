"""Who is taken out of the way of connections: one that says so or is gone, and not one that is only slow to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.bus import eventually
from tests.support.faults import balancer
from tests.support.faults.balancer import Balancer
from tests.support.faults.proxy import Proxies


class Replica:
    """Answers probes with a status, or with silence."""

    def __init__(self) -> None:
        self.status: int | None = 200
        self.probes = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def probed(self, count: int) -> None:
        """So many more probes have come."""
        target = self.probes + count

        async def have_come() -> bool:
            return self.probes >= target

        await eventually(have_come)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.probes += 1
        if self.status is not None:
            writer.write(f"HTTP/1.1 {self.status} Said\r\n\r\n".encode())
        await reader.read()  # until the prober leaves
        writer.close()


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    replica = Replica()
    await replica.start()
    yield replica
    replica.stop()


@pytest.fixture
async def balanced(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Balancer]:
    for name in ("PROBE_SECONDS", "PROBE_SECONDS_MAX", "NOTICE_SECONDS"):
        monkeypatch.setattr(balancer, name, 0.1)
    proxies = Proxies()
    made = await asyncio.to_thread(Balancer, proxies, {"replica": (replica.url, replica.url)})
    await routed(made, ["replica"])
    yield made
    await asyncio.to_thread(made.close)
    await asyncio.to_thread(proxies.close)


async def routed(made: Balancer, names: list[str]) -> None:
    await asyncio.to_thread(made.wait_until_routed, names)


async def test_a_replica_that_is_slow_to_answer_is_still_connected_to(balanced: Balancer, replica: Replica) -> None:
    replica.status = None
    await replica.probed(balancer.SILENT_PROBES_MAX - 2)
    replica.status = 200
    await replica.probed(3)
    await routed(balanced, ["replica"])
    assert balanced.changes == 1


async def test_one_that_is_silent_for_long_is_not(balanced: Balancer, replica: Replica) -> None:
    replica.status = None
    await routed(balanced, [])


async def test_one_that_says_that_it_is_not_ready_is_not_and_comes_back(balanced: Balancer, replica: Replica) -> None:
    replica.status = 503
    await routed(balanced, [])
    replica.status = 200
    await routed(balanced, ["replica"])


async def test_one_that_is_gone_is_not(balanced: Balancer, replica: Replica) -> None:
    replica.stop()
    await routed(balanced, [])
