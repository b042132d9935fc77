"""The socket under a connection to the broker: what is written in one turn of the event loop is one write to it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aio_pika import RobustConnection
from aiormq import Connection, TransportFactory
from aiormq.connection import TCPTransportFactory, TLSTransportFactory

# Of frames that the driver's writer has not taken yet. With its own ten, the eleventh message of a batch waits for the
# next turn, and each after it for one more.
Connection.FRAME_BUFFER_SIZE = 1_000


class GatheringConnection(RobustConnection):
    """A robust connection whose frames share writes.

    The driver writes each message by itself, and the loop sends at once whatever it is given: a hundred messages that
    are published together were a hundred system calls, each of which woke the broker.
    """

    def __init__(self, url: Any, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        self.kwargs["transport_factory"] = _GatheringTransport()


class _GatheringTransport(TransportFactory):
    async def create(self, url: Any, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **kwargs)
        return reader, cast(asyncio.StreamWriter, GatheringWriter(writer))


class GatheringWriter:
    """A stream's writer; all but what is here is the writer's own."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._call_soon = asyncio.get_running_loop().call_soon
        self._gathered: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def write(self, data: bytes) -> None:
        if not self._gathered:
            self._call_soon(self._send)
        self._gathered.append(data)

    async def drain(self) -> None:
        self._send()
        await self._writer.drain()

    def write_eof(self) -> None:
        self._send()
        self._writer.write_eof()

    def close(self) -> None:
        try:
            self._send()
        finally:
            self._writer.close()

    def _send(self) -> None:
        gathered, self._gathered = self._gathered, []
        # Where the connection is gone, its reader says so to all who wait.
        if gathered and not self._writer.is_closing():
            self._writer.write(b"".join(gathered))
