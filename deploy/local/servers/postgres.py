"""PostgreSQL as our own process, and what is asked of any PostgreSQL: DSNs and databases."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import asyncpg

from deploy.local.daemon import Daemon, alive, children, kept_ports, run_as, unprivileged_user, wait_until
from deploy.local.servers.home import home, remove_home

USER = "parley"
DATABASES = ("gateway", "orchestrator", "billing", "results")
CONNECTIONS_MAX = 200
BIN_FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


class Control(Protocol):
    """Starts and ends a server; the port stays the same over restarts."""

    port: int

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def running(self) -> bool: ...
    def remove(self) -> None: ...


class Postgres:
    def __init__(self, control: Control) -> None:
        self._control = control
        self.port = control.port
        self.start = control.start
        self.stop = control.stop
        self.kill = control.kill
        self.running = control.running
        self.remove = control.remove

    def restart(self) -> None:
        self.stop()
        self.start()

    def dsn(self, database: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    async def create_database(self, name: str, template: str | None = None) -> str:
        """Makes the database unless it is there, as a copy of the template if one is named; returns its DSN."""
        copy = f' TEMPLATE "{template}"' if template else ""
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            await connection.execute(f'CREATE DATABASE "{name}"{copy}')
        except asyncpg.DuplicateDatabaseError:
            if template:
                raise
        finally:
            await connection.close()
        return self.dsn(name)

    async def drop_databases(self, names: Iterable[str]) -> None:
        connection = await asyncpg.connect(self.dsn("postgres"))
        try:
            for name in names:
                await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close()


def find_postgres() -> Path | None:
    """The folder of the programs, newest version first; they are not on the PATH of Debian."""
    folders = [found for pattern in BIN_FOLDERS for found in Path("/").glob(pattern.lstrip("/"))]
    folders.sort(key=lambda folder: [int(number) for number in re.findall(r"\d+", str(folder))], reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    needed = ("initdb", "postgres", "pg_isready")
    return next((folder for folder in folders if all((folder / name).exists() for name in needed)), None)


class PrivatePostgres:
    """One cluster under the root folder, as the user postgres when we are root."""

    def __init__(self, root: Path, programs: Path) -> None:
        self._root = root
        self._programs = programs
        self._user = unprivileged_user("postgres")
        self._home = home(root, "postgres", self._user)
        self._data = self._home / "data"
        self._log = self._home / "log"
        self._daemon = Daemon(self._home / "pid")
        (self.port,) = kept_ports(self._home / "port", 1, running=self.running())

    def running(self) -> bool:
        return self._daemon.running()

    def start(self) -> None:
        if self.running():
            return
        self._log.unlink(missing_ok=True)
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        # The file of a server that was killed: PostgreSQL trusts it if a stranger has been given the same pid since.
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        self._daemon.start(self._command(), environ=self._environ(), cwd=self._home, log=self._log, user=self._user)
        wait_until(self._answers, self.running, "PostgreSQL", self._log)

    def stop(self) -> None:
        self._daemon.stop(signal.SIGINT)  # fast: ends the sessions, then a clean shutdown

    def kill(self) -> None:
        """The end that a power cut brings: the children too, or they would still hold the shared memory."""
        pid = self._daemon.pid()
        backends = children(pid) if pid else []
        self._daemon.kill()
        for backend in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, backends)), lambda: True, "PostgreSQL's end", self._log)

    def remove(self) -> None:
        """Forgets all data; the server is stopped before."""
        remove_home(self._root, "postgres")

    def _initialise(self) -> None:
        words = ["-D", str(self._data), "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        with self._log.open("ab") as output:
            subprocess.run(
                [self._programs / "initdb", *words],
                env=self._environ(),
                cwd=self._home,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
                **run_as(self._user),
            )

    def _command(self) -> list[str | Path]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": CONNECTIONS_MAX,
            "fsync": "on",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [self._programs / "postgres", "-D", self._data, *options]

    def _answers(self) -> bool:
        words = ["-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres"]
        return subprocess.run([self._programs / "pg_isready", *words], check=False).returncode == 0

    def _environ(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._home), "LC_ALL": "C"}
