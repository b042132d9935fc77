"""A TCP proxy that can be told to misbehave. Its thread is its own, so a test that blocks does not stall it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from deploy.local.daemon import free_ports

T = TypeVar("T")

Address = tuple[str, int]
Upstream = Address | Callable[[], Address | None] | None
"""Fixed, or chosen anew for each connection; None: nobody is there."""

Mode = Literal[
    "pass",
    "refuse",  # nobody listens; connections that are open go on
    "freeze",  # not a byte moves, nor an end; connections stay, new ones are taken and get no answer
]

CHUNK_BYTES = 64 * 1024
BACKLOG = 1024
_RESET = struct.pack("ii", 1, 0)
_CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Shape:
    """What is done to bytes on their way. `reset_after_bytes` counts both directions of one connection."""

    latency_seconds: float = 0.0
    bytes_per_second: float | None = None
    reset_after_bytes: int | None = None


@dataclass(frozen=True)
class Counts:
    """Since the start. `refused` are connections whose upstream could not be reached."""

    accepted: int
    open: int
    refused: int
    bytes_up: int
    bytes_down: int


class Proxies:
    """The thread with its loop, and the proxies that live there."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._proxies: list[Proxy] = []
        self._thread.start()

    def listen(self, upstream: Upstream = None) -> Proxy:
        """A proxy that passes. Its upstream may be set later: until then every connection is reset."""
        proxy = Proxy(self, upstream, free_ports(1)[0])
        proxy.set_mode("pass")
        self._proxies.append(proxy)
        return proxy

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which runs in the proxies' own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


class Proxy:
    """One listening port in front of one upstream. Every method may be called from any thread but the proxies' own."""

    def __init__(self, host: Proxies, upstream: Upstream, port: int) -> None:
        self.upstream = upstream
        self.port = port
        self._host = host
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._shape = Shape()
        self._changed = threading.Condition()
        self._accepted = self._refused = 0
        self._bytes = {"up": 0, "down": 0}

    def set_mode(self, mode: Mode) -> None:
        self._host.run(self._set_mode(mode))

    def set_shape(self, shape: Shape) -> None:
        """For bytes that are read from now on, and connections that are open too."""
        self._host.run(self._set_shape(shape))

    def cut(self) -> int:
        """Reset both sides of every open connection; how many there were."""
        return self._host.run(self._each(_Connection.reset))

    def half_open(self) -> int:
        """Reset the upstream's side of every open connection and leave the client's in silence; how many."""
        return self._host.run(self._each(_Connection.desert))

    def heal(self) -> None:
        """Pass everything again. What was half open is reset, as when a host that was gone comes back."""
        self.set_shape(Shape())
        self.set_mode("pass")
        self._host.run(self._each(_Connection.reset, only_deserted=True))

    def close(self) -> None:
        self.set_mode("refuse")
        self.cut()

    @property
    def counts(self) -> Counts:
        return Counts(self._accepted, len(self._open), self._refused, self._bytes["up"], self._bytes["down"])

    def wait_for(self, holds: Callable[[Counts], bool], *, seconds: float = 10) -> None:
        """Return once the counts are such; for tests that wait for a connection to come or go."""
        with self._changed:
            if not self._changed.wait_for(lambda: holds(self.counts), seconds):
                raise TimeoutError(f"the proxy's counts did not become such within {seconds:g} s: {self.counts}")

    async def _set_mode(self, mode: Mode) -> None:
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
        elif mode != "refuse" and self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self.port, backlog=BACKLOG, reuse_address=True, limit=CHUNK_BYTES
            )
        if mode == "freeze":
            self._thawed.clear()
        else:
            self._thawed.set()

    async def _set_shape(self, shape: Shape) -> None:
        self._shape = shape

    async def _each(self, act: Callable[[_Connection], None], *, only_deserted: bool = False) -> int:
        hit = [connection for connection in self._open if connection.deserted or not only_deserted]
        for connection in hit:
            act(connection)
        return len(hit)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._accepted += 1
        self._open.add(connection)
        self._notify()
        try:
            await self._thawed.wait()
            if await self._connect(connection):
                assert connection.up_reader is not None
                assert connection.up is not None
                await asyncio.gather(
                    self._pump(connection, reader, connection.up, "up"),
                    self._pump(connection, connection.up_reader, writer, "down"),
                )
        except ConnectionError:
            connection.reset()
        finally:
            # Deserted: the client's side stays open until it leaves, or until somebody resets it.
            while connection.deserted and not connection.closed and await _read(reader):
                continue
            connection.close()
            self._open.discard(connection)
            self._notify()

    async def _connect(self, connection: _Connection) -> bool:
        try:
            upstream = self.upstream() if callable(self.upstream) else self.upstream
            if upstream is None:
                raise ConnectionRefusedError
            async with asyncio.timeout(_CONNECT_SECONDS):
                connection.up_reader, connection.up = await asyncio.open_connection(*upstream, limit=CHUNK_BYTES)
        except OSError:
            self._refused += 1
            connection.reset()
            return False
        if connection.closed:
            connection.reset()
        return not connection.closed

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        direction: Literal["up", "down"],
    ) -> None:
        while True:
            try:
                chunk = await _read(reader, connection)
            finally:
                await self._thawed.wait()
            if connection.deserted or connection.closed:
                return
            if not chunk:
                with suppress(OSError):
                    writer.write_eof()
                return
            await self._delay(len(chunk))
            if not self._send(connection, writer, chunk, direction):
                return
            await writer.drain()

    async def _delay(self, size: int) -> None:
        shape = self._shape
        seconds = shape.latency_seconds + (size / shape.bytes_per_second if shape.bytes_per_second else 0)
        if seconds:
            await asyncio.sleep(seconds)

    def _send(
        self, connection: _Connection, writer: asyncio.StreamWriter, chunk: bytes, direction: Literal["up", "down"]
    ) -> bool:
        """Whether the connection goes on."""
        left = None if self._shape.reset_after_bytes is None else self._shape.reset_after_bytes - connection.bytes
        passed = chunk if left is None else chunk[: max(0, left)]
        connection.bytes += len(passed)
        self._bytes[direction] += len(passed)  # before anybody can have seen them
        writer.write(passed)
        if left is not None and left <= len(chunk):
            connection.reset()
            return False
        return True

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Connection:
    """Both sides of what a client opened."""

    def __init__(self, down: asyncio.StreamWriter) -> None:
        self.down = down
        self.up: asyncio.StreamWriter | None = None
        self.up_reader: asyncio.StreamReader | None = None
        self.bytes = 0
        self.closed = False
        self.deserted = False

    def reset(self) -> None:
        self.closed = True
        for writer in (self.down, self.up):
            if writer is not None:
                _reset(writer)

    def desert(self) -> None:
        self.deserted = True
        if self.up is not None:
            _reset(self.up)

    def close(self) -> None:
        self.closed = True
        for writer in (self.down, self.up):
            if writer is not None:
                writer.close()


async def _read(reader: asyncio.StreamReader, connection: _Connection | None = None) -> bytes:
    """Nothing at the end of the stream. A reset is passed on as one, unless the connection's own doing."""
    try:
        return await reader.read(CHUNK_BYTES)
    except ConnectionError:
        if connection is None or connection.deserted or connection.closed:
            return b""
        raise


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side gets a RST instead of an orderly end."""
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.transport.is_closing():
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
