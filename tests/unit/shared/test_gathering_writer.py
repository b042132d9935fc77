"""What is written to the broker in one turn of the event loop is one write to the socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.messaging.transport import GatheringWriter


class Socket(asyncio.Transport):
    """Keeps each write by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def write_eof(self) -> None:
        self.writes.append(b"(end)")

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def socket() -> Socket:
    return Socket()


@pytest.fixture
async def writer(socket: Socket) -> AsyncIterator[GatheringWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    yield GatheringWriter(asyncio.StreamWriter(socket, protocol, reader, loop))
    socket.close()


async def test_what_is_written_in_one_turn_of_the_loop_is_one_write(writer: GatheringWriter, socket: Socket) -> None:
    for frame in (b"one", b"two", b"three"):
        writer.write(frame)
    await asyncio.sleep(0)
    writer.write(b"four")
    await asyncio.sleep(0)

    assert socket.writes == [b"onetwothree", b"four"]


async def test_who_waits_for_the_socket_waits_for_what_was_gathered(writer: GatheringWriter, socket: Socket) -> None:
    writer.write(b"one")
    await writer.drain()

    assert socket.writes == [b"one"]


async def test_a_close_sends_first_what_was_gathered(writer: GatheringWriter, socket: Socket) -> None:
    writer.write(b"last words")
    writer.close()

    assert (socket.writes, writer.is_closing()) == ([b"last words"], True)


async def test_the_end_of_a_stream_comes_after_what_was_gathered(writer: GatheringWriter, socket: Socket) -> None:
    writer.write(b"last words")
    writer.write_eof()

    assert socket.writes == [b"last words", b"(end)"]


async def test_what_is_written_to_a_lost_connection_is_dropped(writer: GatheringWriter, socket: Socket) -> None:
    writer.write(b"one")
    socket.close()
    await asyncio.sleep(0)

    assert socket.writes == []
