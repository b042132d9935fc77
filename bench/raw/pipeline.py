"""Starts and ends the three processes."""

import sys
from functools import partial
from pathlib import Path

from deploy.local.daemon import Daemon, free_ports, wait_until
from deploy.local.environment import REPOSITORY

READY_SECONDS = 30


class RawPipeline:
    name = "raw"
    """Of its package in the benchmark."""
    # The store first: it makes the table that the front reads.
    processes: tuple[str, ...] = ("store", "worker", "front")

    def __init__(self, root: Path, *, dsn: str, amqp_url: str, llm_url: str) -> None:
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._root = root
        self._arguments = ("--amqp-url", amqp_url, "--dsn", dsn, "--llm-url", llm_url, "--port", str(port))
        self._daemons = {name: Daemon(root / f"{name}.pid") for name in self.processes}

    def start(self, environ: dict[str, str]) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for name, daemon in self._daemons.items():
            log = self._root / f"{name}.log"
            log.unlink(missing_ok=True)
            words = [sys.executable, "-m", f"bench.{self.name}.{name}", *self._arguments]
            daemon.start(words, environ=environ, cwd=REPOSITORY, log=log)
            wait_until(partial(_says_ready, log), daemon.running, name, log, READY_SECONDS)

    def stop(self) -> None:
        for daemon in self._daemons.values():
            daemon.stop()

    def pids(self) -> dict[str, int]:
        return {name: pid for name, daemon in self._daemons.items() if (pid := daemon.pid()) is not None}


def _says_ready(log: Path) -> bool:
    return "ready" in log.read_text()
