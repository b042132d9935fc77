"""`python -m tests.support.faults.skewed SECONDS MODULE ...` runs MODULE as on a host whose wall clock is wrong.

What Python code reads of the wall clock is moved: time, datetime and the time inside a UUIDv7. The monotonic clock is
not, for no wrong setting of a host's clock touches it. Nothing may have been imported yet that keeps a name of these.
"""

from __future__ import annotations

import datetime as real_datetime
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

_NANOSECONDS = 1_000_000_000


def skew_time(seconds: float) -> None:
    read, read_ns, read_clock = time.time, time.time_ns, time.clock_gettime
    gmtime, localtime = time.gmtime, time.localtime

    def clock_gettime(clock: int) -> float:
        return read_clock(clock) + (seconds if clock == time.CLOCK_REALTIME else 0.0)

    time.time = lambda: read() + seconds
    time.time_ns = lambda: read_ns() + round(seconds * _NANOSECONDS)
    time.clock_gettime = clock_gettime
    time.gmtime = lambda at=None: gmtime(time.time() if at is None else at)
    time.localtime = lambda at=None: localtime(time.time() if at is None else at)


def skew_datetime(seconds: float) -> None:
    real = real_datetime.datetime
    skew = real_datetime.timedelta(seconds=seconds)

    class Kind(type):
        """Instants that C code makes are of the real class."""

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, real)

    class Skewed(real_datetime.datetime, metaclass=Kind):
        @classmethod
        def now(cls, tz: real_datetime.tzinfo | None = None) -> Any:
            return real.now(tz) + skew

        @classmethod
        def utcnow(cls) -> Any:
            return real.now(real_datetime.UTC).replace(tzinfo=None) + skew

        @classmethod
        def today(cls) -> Any:
            return cls.now()

    Skewed.__name__ = Skewed.__qualname__ = "datetime"
    Skewed.__module__ = "datetime"
    real_datetime.datetime = Skewed  # type: ignore[misc]


def skew_uuid7() -> None:
    """Made in Rust, which asks the system by itself."""
    import uuid_utils

    made: Callable[..., Any] = uuid_utils.uuid7

    def uuid7(*, nanoseconds: int | None = None) -> Any:
        return made(nanoseconds=time.time_ns() if nanoseconds is None else nanoseconds)

    uuid_utils.uuid7 = uuid7


def main() -> None:
    seconds, module, *arguments = sys.argv[1:]
    skew_time(float(seconds))
    skew_datetime(float(seconds))
    skew_uuid7()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
