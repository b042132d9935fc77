"""Crash points: places where a process may be told to die, so that tests can prove that nothing is lost there."""

from __future__ import annotations

import os
import signal

from shared.errors import ParleyError

_armed: dict[str, int] = {}


class UnknownFailpoint(ParleyError):
    """FAILPOINTS is not of the form `point=count,point=count`."""


def arm(specification: str) -> None:
    """`point=3,other=1`: die when `point` is reached for the third time. Empty disarms everything."""
    _armed.clear()
    for part in filter(None, (part.strip() for part in specification.split(","))):
        point, separator, count = part.partition("=")
        if not separator or not count.isdigit() or int(count) < 1:
            raise UnknownFailpoint(f"FAILPOINTS has {part!r}; write point=count with a count of at least 1")
        _armed[point] = int(count)


def reach(point: str) -> None:
    """Die here, as by `kill -9`, if this is the armed visit. Disarmed, this is one look-up in an empty dictionary."""
    if not _armed or point not in _armed:
        return
    _armed[point] -= 1
    if _armed[point] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
