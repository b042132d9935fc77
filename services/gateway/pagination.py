"""Cursors of lists: opaque text that names its list and the last row seen, checked when it comes back."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from typing import Final, Literal, TypeAlias

from shared.errors import Problem

List: TypeAlias = Literal["sessions", "requests", "session_requests", "messages", "accounts", "keys"]

_POSITION: Final = re.compile(r"[a-z]{2,8}_[0-9a-f]{32}|[1-9][0-9]{0,9}")
CURSOR_LENGTH_MAX: Final = 120


def encode_cursor(name: List, position: str | int) -> str:
    """A cursor that continues the list `name` after `position`: an id, or a place in a session."""
    body = f"{name}:{position}"
    return base64.urlsafe_b64encode(f"{zlib.crc32(body.encode()):08x}:{body}".encode()).decode().rstrip("=")


def decode_cursor(name: List, cursor: str | None) -> str | None:
    """The position in a cursor of this list; None where there is no cursor.

    The checksum tells a damaged cursor from a good one. It is no signature and needs none: every list is
    limited to what its reader owns, so a made-up position shows nothing new.
    """
    if cursor is None:
        return None
    position = _position_in(name, cursor)
    if position is None:
        raise Problem(422, "invalid_cursor", "The cursor is not one that this list has given. Start without a cursor.")
    return position


def decode_seq_cursor(name: List, cursor: str | None) -> int | None:
    """The same for lists whose positions are places in a session."""
    position = decode_cursor(name, cursor)
    if position is not None and not position.isdecimal():
        raise Problem(422, "invalid_cursor", "The cursor is not one that this list has given. Start without a cursor.")
    return None if position is None else min(int(position), 2**31 - 1)


def _position_in(name: List, cursor: str) -> str | None:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return None
    checksum, _, body = text.partition(":")
    prefix, _, position = body.partition(":")
    if checksum != f"{zlib.crc32(body.encode()):08x}" or prefix != name or not _POSITION.fullmatch(position):
        return None
    return position
