"""Starts a stand-in as a process and waits for its ready line."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

READY_SECONDS = 120
END_SECONDS = 10
_ROOT = Path(__file__).resolve().parents[3]
_READY = re.compile(r"ready port=(\d+) control_port=(\d+)")


@dataclass(frozen=True, slots=True)
class Standin:
    pid: int
    url: str
    control_url: str


@contextmanager
def standin(name: str, *options: str) -> Iterator[Standin]:
    """`name` is llm or stripe. The process ends with the block; one that does not end by itself is killed."""
    command = [sys.executable, "-m", f"deploy.local.standins.{name}", *options]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            ports = _ready_ports(process)
            yield Standin(process.pid, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
        finally:
            _end(process)


def _ready_ports(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout is not None
    # readline has no time limit of its own: killing the process ends it.
    limit = Timer(READY_SECONDS, process.kill)
    limit.start()
    try:
        line = process.stdout.readline()
    finally:
        limit.cancel()
    ready = _READY.match(line)
    if ready is None:
        raise RuntimeError(f"{process.args!r} did not start; it wrote {line!r}")
    return ready[1], ready[2]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
