"""A TCP proxy that loses connections as networks do: before a byte, after the request, in the middle of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REFUSED = -1
"""The connection is reset before anything is forwarded."""


@dataclass
class CuttingProxy:
    """Treats its connections in turn: each is reset once so many bytes of answers went through; 0 lets the request
    pass and loses the answer."""

    url: str
    answer_bytes: Sequence[int]
    cuts: int = 0
    port: int = 0
    _treatments: itertools.cycle[int] = field(init=False)
    _open: set[asyncio.Task[None]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._treatments = itertools.cycle(self.answer_bytes)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._forward(reader, writer))
        self._open.add(connection)
        connection.add_done_callback(self._open.discard)
        connection.add_done_callback(lambda _: writer.close())  # also where it was cancelled before it began

    async def close(self) -> None:
        for connection in self._open:
            connection.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        budget = next(self._treatments)
        target = urlsplit(self.url)
        if budget == REFUSED:
            self._reset(writer)
            return
        up_reader, up_writer = await asyncio.open_connection(target.hostname, target.port)
        with contextlib.closing(up_writer):
            await _first_of(_copy(reader, up_writer), self._answer(up_reader, writer, budget))

    async def _answer(self, up_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int) -> None:
        while chunk := await up_reader.read(65536):
            if len(chunk) > budget:
                writer.write(chunk[:budget])
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                self._reset(writer)
                return
            budget -= len(chunk)
            writer.write(chunk)
            await writer.drain()

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        """RST, not FIN: the peer learns that the connection is gone, not that the answer is whole."""
        self.cuts += 1
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


async def _first_of(*ways: Coroutine[None, None, None]) -> None:
    """Return when one of them ends; the others are cancelled."""
    tasks = [asyncio.create_task(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()


@asynccontextmanager
async def cutting_proxy(url: str, answer_bytes: Sequence[int]) -> AsyncIterator[CuttingProxy]:
    """In front of `url`, on a port of its own."""
    proxy = CuttingProxy(url, answer_bytes)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await server.wait_closed()
        await proxy.close()
