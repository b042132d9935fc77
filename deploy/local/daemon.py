"""A background process that outlives the command which started it, known by its pid file."""

import contextlib
import fcntl
import functools
import itertools
import os
import pwd
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

POLL_SECONDS = 0.05
# The children of this process by pid. The one object that started a process need not be the one that ends it.
_children: dict[int, "Child"] = {}
# Below the range from which the kernel takes the ports of outgoing connections: a client that keeps reconnecting while
# the server is down could otherwise be given the very port, and connect to itself.
PORTS = range(20_000, 32_000)
SLICE_PORTS = 200


class DaemonError(Exception):
    """A process did not start, or did not get ready in time."""


@dataclass(frozen=True)
class User:
    """Whom a server runs as when we are root."""

    name: str
    uid: int
    gid: int


class Child(Protocol):
    """A process that this one started. `poll` and `wait` tell its exit status, -9 for one that was killed; `wait`
    raises subprocess.TimeoutExpired."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...


def spawn(argv: Sequence[str], *, environ: Mapping[str, str], cwd: Path, log: Path, user: User | None = None) -> Child:
    """A process in a session of its own, which writes to the end of this file and reads nothing."""
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            env=dict(environ),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **run_as(user),
        )


def unprivileged_user(*names: str) -> User | None:
    """The first of these users that exists, or nobody; None when we are not root and so stay who we are."""
    if os.geteuid() != 0:
        return None
    for name in (*names, "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return User(name, entry.pw_uid, entry.pw_gid)
    raise DaemonError(f"running as root, but none of the users {', '.join(names)}, nobody exists")


def run_as(user: User | None) -> dict[str, Any]:
    """The arguments of subprocess that drop root."""
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


def free_ports(count: int) -> list[int]:
    """That many different ports on which nobody listens, and which no other process of ours is given meanwhile."""
    free = filter(is_free, itertools.islice(_own_ports(), SLICE_PORTS))
    found = list(itertools.islice(free, count))
    if len(found) < count:
        raise DaemonError(f"no {count} free ports among the {SLICE_PORTS} of this process")
    return found


@functools.cache
def _own_ports() -> Iterator[int]:
    """A slice of the range, round and round. Between the choice of a port and its use lies the start of a server, in
    which another process would be given it too: the slice is locked for as long as this process lives."""
    folder = Path(tempfile.gettempdir()) / f"parley-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    starts = list(PORTS[::SLICE_PORTS])
    random.shuffle(starts)
    for start in starts:
        lock = os.open(folder / str(start), os.O_CREAT | os.O_WRONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return itertools.cycle(range(start, start + SLICE_PORTS))
    raise DaemonError(f"all ports between {PORTS.start} and {PORTS.stop} are spoken for")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def kept_ports(file: Path, count: int, *, running: bool) -> list[int]:
    """The ports a server had the last time; others if somebody has taken one since."""
    ports = [int(port) for port in file.read_text().split()] if file.exists() else []
    if not ports or not (running or all(map(is_free, ports))):
        ports = free_ports(count)
        file.write_text(" ".join(map(str, ports)))
    return ports


def tail(log: Path, lines: int = 20) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"


def wait_until(
    ready: Callable[[], bool], alive: Callable[[], bool], what: str, log: Path, timeout_seconds: float = 180
) -> None:
    """Returns once `ready()`; an early death or the timeout raises with the end of the log."""
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if not alive():
            raise DaemonError(f"{what} ended before it was ready; the end of {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise DaemonError(f"{what} was not ready within {timeout_seconds:g} s; the end of {log}:\n{tail(log)}")
        time.sleep(POLL_SECONDS)


class Daemon:
    spawn: ClassVar[Callable[..., Child]] = staticmethod(spawn)
    """Tests have a quicker one (tests/support/forking.py)."""

    def __init__(self, pid_file: Path) -> None:
        self._pid_file = pid_file

    def start(
        self, argv: Sequence[str | Path], *, environ: Mapping[str, str], cwd: Path, log: Path, user: User | None = None
    ) -> None:
        child = self.spawn([str(word) for word in argv], environ=environ, cwd=cwd, log=log, user=user)
        _children[child.pid] = child
        self._pid_file.write_text(f"{child.pid} {_birth(child.pid)}\n")

    def pid(self) -> int | None:
        """The pid while the very process that was started still runs: a recycled pid was born at another time."""
        _reap()
        if not self._pid_file.exists():
            return None
        pid, _, birth = self._pid_file.read_text().strip().partition(" ")
        return int(pid) if pid.isdigit() and birth and _birth(int(pid)) == birth else None

    def running(self) -> bool:
        return self.pid() is not None

    def stop(self, sign: signal.Signals = signal.SIGTERM, timeout_seconds: float = 30) -> None:
        """Signals the process and waits for its end; one that does not listen is killed with its whole session."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
            self._wait_for_end(timeout_seconds)
            if self.running():
                self.kill()
        self._pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            self._wait_for_end(10)

    def _wait_for_end(self, timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while self.running() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def child(pid: int) -> Child | None:
    """The process, where this one started it: it tells its exit status, also after it was waited for."""
    return _children.get(pid)


def _reap() -> None:
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


def _birth(pid: int) -> str | None:
    """A word that no other process with this pid ever has; None for one that is gone or a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            # While other threads of a killed process still end, its first one is a zombie already, and ports are held.
            ended = fields[0] == "Z" and len(list(stat.with_name("task").iterdir())) == 1
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if ended else fields[19]
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip().replace(" ", "-") or None


def alive(pid: int) -> bool:
    return _birth(pid) is not None


def children(parent: int) -> list[int]:
    """Read from /proc; a system without it has none to show, and the children end by themselves a little later."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(stat.parent.name))
    return found
