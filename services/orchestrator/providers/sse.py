"""Server-sent events out of bytes, however the network cut them."""

from __future__ import annotations

from typing import Final

LINE_BYTES_MAX: Final = 8 * 2**20


class LineTooLong(Exception):
    """A line, or the data of one event, exceeds what is kept of it."""


class EventStream:
    """Gives the `data` of each whole event. Lines end at CR, LF or CRLF and nowhere else: JSON may hold U+2028."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._skip_lf = False
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        if self._skip_lf and chunk:
            # The CR at the end of the last chunk ended its line; its LF must not end an empty one.
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        self._rest += chunk
        # bytes.splitlines, unlike str.splitlines, knows only the three line ends of the standard.
        lines = bytes(self._rest).splitlines() if b"\n" in chunk or b"\r" in chunk else []
        if lines:
            self._rest = bytearray() if self._rest.endswith((b"\n", b"\r")) else bytearray(lines.pop())
            self._skip_lf = chunk.endswith(b"\r")
        if len(self._rest) > LINE_BYTES_MAX:
            raise LineTooLong
        if lines and self._first:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            self._first = False
        events = []
        for line in lines:
            if line:
                self._keep(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
        return events

    def _keep(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._data_bytes += len(value)
            if self._data_bytes > LINE_BYTES_MAX:
                raise LineTooLong
