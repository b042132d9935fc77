"""The processes of one local stack: four services and the stand-ins, started, watched and ended together."""

import asyncio
import re
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deploy.local.daemon import Daemon, DaemonError, free_ports, tail, wait_until
from deploy.local.environment import LLM, REPOSITORY, SERVICES, STRIPE, plan
from deploy.local.plain_http import answers_ok
from deploy.local.secrets_file import load_or_make
from deploy.local.servers.find import DSN_NAMES
from shared.migrate import migrate

READY_SECONDS = 180
ADMIN_KEY = re.compile(r"\bpa_live_\w+")


class Stack:
    """`root` keeps pid files, logs and secrets; `urls` are the four DSNs and AMQP_URL under their usual names.

    `base` is the environment the services inherit: keys in it that name a real provider or Stripe keep the stand-in
    away. `overrides` sets variables of one service ("orchestrator") or of one replica ("gateway-2").
    """

    def __init__(
        self,
        root: Path,
        urls: Mapping[str, str],
        base: Mapping[str, str],
        *,
        replicas: Mapping[str, int] | None = None,
        overrides: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.root = root.resolve()
        self.urls = urls
        self.secrets = load_or_make(self.root)
        replicas = replicas or {}
        ports = iter(free_ports(4 + 2 * sum(max(1, replicas.get(service, 1)) for service in SERVICES)))
        self.processes = plan(base, urls, self.secrets, ports, replicas=replicas, overrides=overrides or {})
        self._daemons = {name: Daemon(_run_folder(self.root) / f"{name}.pid") for name in self.processes}
        self._admin_key = ""

    def start(self) -> None:
        """Migrates, starts everything side by side and returns when all are ready; a failure leaves nothing running."""
        for name in self.processes:
            self.log(name).unlink(missing_ok=True)
        with ThreadPoolExecutor(len(self.processes)) as pool:
            pool.submit(asyncio.run, _migrate_all(self.urls)).result()
            try:
                list(pool.map(self.start_process, self.processes))
            except DaemonError:
                self.stop()
                raise

    def start_process(self, name: str) -> None:
        """Starts one process, under its old ports where it ran before, and waits until it is ready."""
        process, daemon, log = self.processes[name], self._daemons[name], self.log(name)
        if daemon.running():
            return
        log.parent.mkdir(exist_ok=True)
        daemon.start(process.command(), environ=process.environ, cwd=REPOSITORY, log=log)
        wait_until(lambda: answers_ok(process.ready_url()), daemon.running, name, log, READY_SECONDS)

    def stop_process(self, name: str) -> None:
        """An orderly end: the process drains first."""
        self._daemons[name].stop()

    def kill_process(self, name: str) -> None:
        self._daemons[name].kill()

    def stop(self) -> None:
        stop_all(self.root)

    def dead(self) -> list[str]:
        return [name for name, daemon in self._daemons.items() if not daemon.running()]

    def log(self, name: str) -> Path:
        return self.root / "logs" / f"{name}.log"

    def url(self, name: str) -> str:
        return self.processes[name].url

    def ops_url(self, name: str) -> str:
        """The health and metrics of a service, the control port of a stand-in."""
        return self.processes[name].ops_url

    def has_standin(self, name: str) -> bool:
        return name in (LLM, STRIPE) and name in self.processes

    def command(self, service: str, *words: str) -> str:
        """What `python -m services.<service> WORDS` prints."""
        process = self.processes[service]
        command = [*process.command(), *words]
        answer = subprocess.run(
            command, env=dict(process.environ), cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        if answer.returncode != 0:
            raise DaemonError(f"{service} {' '.join(words)} failed: {answer.stderr.strip() or answer.stdout.strip()}")
        return answer.stdout

    def admin_key(self) -> str:
        if not self._admin_key:
            found = ADMIN_KEY.search(self.command("gateway", "keys", "create", "--admin"))
            if not found:
                raise DaemonError("`python -m services.gateway keys create --admin` printed no admin key")
            self._admin_key = found.group()
        return self._admin_key

    def obituary(self, name: str) -> str:
        return f"{name} has ended; the end of {self.log(name)}:\n{tail(self.log(name))}"


def stop_all(root: Path) -> None:
    """Ends the processes of whichever stack was started under this root, side by side; the services drain first."""
    daemons = [Daemon(file) for file in sorted(_run_folder(root).glob("*.pid"))]
    if daemons:
        with ThreadPoolExecutor(len(daemons)) as pool:
            list(pool.map(Daemon.stop, daemons))


def running(root: Path) -> bool:
    return any(Daemon(file).running() for file in _run_folder(root).glob("*.pid"))


def _run_folder(root: Path) -> Path:
    folder = root / "run"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _migrate_all(urls: Mapping[str, str]) -> None:
    folder = REPOSITORY / "services"
    await asyncio.gather(
        *(migrate(urls[name], service, folder / service / "migrations") for service, name in DSN_NAMES.items())
    )
