"""Services and stand-ins forked from a process that has imported them: to import is nearly all that their start costs,
and tests start some hundreds. From there on they run as `python -m` would run them."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

from deploy.local import daemon
from deploy.local.daemon import Child, User
from deploy.local.environment import SERVICES

MODULES: Final = (
    *(f"services.{service}" for service in SERVICES),
    "deploy.local.standins.llm",
    "deploy.local.standins.stripe",
)
_context: Final = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([f"{module}.__main__" for module in MODULES])
# The library looks after all its children whenever it starts one, and each can be looked after by one thread only.
_lock: Final = threading.Lock()


def spawn(argv: Sequence[str], *, environ: Mapping[str, str], cwd: Path, log: Path, user: User | None = None) -> Child:
    """As `daemon.spawn`; what is none of ours, it starts."""
    match argv:
        case [sys.executable, "-m", module, *arguments] if module in MODULES:
            process = _context.Process(target=_run, args=(module, arguments, dict(environ), cwd, log), daemon=True)
            with _lock:
                process.start()
            return _Forked(process)
    return daemon.spawn(argv, environ=environ, cwd=cwd, log=log, user=user)


class _Forked:
    def __init__(self, process: Any) -> None:
        self._process = process
        self.pid: int = process.pid

    def poll(self) -> int | None:
        with _lock:
            status: int | None = self._process.exitcode
            return status

    def wait(self, timeout: float | None = None) -> int:
        wait([self._process.sentinel], timeout)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(str(self._process.name), timeout or 0)
        return status

    def terminate(self) -> None:
        self._process.terminate()


def _run(module: str, arguments: Sequence[str], environ: Mapping[str, str], cwd: Path, log: Path) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, descriptor)
    sys.argv[1:] = arguments
    del sys.modules[f"{module}.__main__"]  # it was imported, and is to be run
    runpy.run_module(module, run_name="__main__", alter_sys=True)
