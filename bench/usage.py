"""What a process costs, read from /proc: CPU with everything it started, and its greatest resident memory."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_KIB = 1024


def cpu_seconds(pid: int) -> float:
    """User and system time of the process, of its descendants that live, and of those it has waited for."""
    by_parent: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks[int(folder.name)] = sum(map(int, fields[11:15]))
            by_parent.setdefault(int(fields[1]), []).append(int(folder.name))
    family = [pid]
    for member in family:
        family += by_parent.get(member, [])
    return sum(ticks.get(member, 0) for member in family) / _TICKS_PER_SECOND


def all_cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    return {name: cpu_seconds(pid) for name, pid in pids.items()}


def peak_bytes(pid: int) -> int:
    """The greatest resident memory since the process began."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * _KIB
    return 0
