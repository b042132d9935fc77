"""PostgreSQL and RabbitMQ as containers of deploy/compose.yaml, where no programs are installed."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from deploy.local.daemon import DaemonError, kept_ports

COMPOSE_FILE = Path(__file__).parents[2] / "compose.yaml"
PORT_VARIABLES = {"postgres": "POSTGRES_PORT", "rabbitmq": "RABBITMQ_PORT"}


def answers() -> bool:
    """Whether there is an engine behind the client, and a compose plugin."""
    if shutil.which("docker") is None:
        return False
    commands = (["docker", "info"], ["docker", "compose", "version"])
    try:
        return all(subprocess.run(c, capture_output=True, check=False, timeout=20).returncode == 0 for c in commands)
    except subprocess.TimeoutExpired:
        return False


class Container:
    """One service of the compose file; the project's name comes from the root folder, so that roots do not meet."""

    def __init__(self, root: Path, service: str) -> None:
        self._service = service
        self._project = "parley-" + hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
        self._folder = root / service
        self._folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = kept_ports(self._folder / "container-port", 1, running=True)

    def running(self) -> bool:
        return bool(self._compose("ps", "--status", "running", "--quiet", self._service).strip())

    def start(self) -> None:
        self._compose("up", "--detach", "--wait", self._service)

    def stop(self) -> None:
        self._compose("stop", self._service)

    def kill(self) -> None:
        self._compose("kill", self._service)

    def remove(self) -> None:
        """Forgets the container and its data."""
        self._compose("rm", "--stop", "--force", self._service)
        volume = f"{self._project}_{self._service}"
        subprocess.run(["docker", "volume", "rm", "--force", volume], capture_output=True, check=False)
        shutil.rmtree(self._folder)

    def ctl(self, *words: str) -> str:
        return self._compose("exec", "--no-TTY", self._service, "rabbitmqctl", *words)

    def _compose(self, *words: str) -> str:
        command = ["docker", "compose", "--project-name", self._project, "--file", str(COMPOSE_FILE), *words]
        environ = {**os.environ, PORT_VARIABLES[self._service]: str(self.port)}
        answer = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise DaemonError(f"docker compose {words[0]} {self._service} failed: {answer.stderr.strip()}")
        return answer.stdout
