"""RabbitMQ as our own process, and what is asked of any RabbitMQ: URLs and virtual hosts."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from deploy.local.daemon import Daemon, DaemonError, kept_ports, run_as, tail, unprivileged_user, wait_until
from deploy.local.servers.home import home, remove_home
from deploy.local.servers.postgres import Control

USER = PASSWORD = "guest"
BIN_FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
STARTED = "Server startup complete"
_ADD = (
    f'rabbit_vhost:add(V, <<"{USER}">>), rabbit_auth_backend_internal:set_permissions('
    f'<<"{USER}">>, V, <<".*">>, <<".*">>, <<".*">>, <<"{USER}">>)'
)
_DELETE = f'rabbit_vhost:delete(V, <<"{USER}">>)'
CONFIGURATION = """\
disk_free_limit.absolute = 50MB
log.console = true
log.console.level = info
# The default of 512 MB is what the log of quorum queues may hold in memory before it is cut.
raft.wal_max_size_bytes = 67108864
"""


class BrokerControl(Control, Protocol):
    def ctl(self, *words: str) -> str: ...


class RabbitMQ:
    def __init__(self, control: BrokerControl) -> None:
        self._control = control
        self.port = control.port
        self.start = control.start
        self.stop = control.stop
        self.kill = control.kill
        self.running = control.running
        self.remove = control.remove
        self.ctl = control.ctl

    def restart(self) -> None:
        self.stop()
        self.start()

    def url(self, vhost: str = "/") -> str:
        name = "%2F" if vhost == "/" else vhost
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def add_vhosts(self, names: Sequence[str], *, instead_of: Sequence[str] = ()) -> None:
        """All in one call, for each call of rabbitmqctl costs a second or more of CPU; the others are deleted by it."""
        self._control.ctl("eval", f"{_each(instead_of, _DELETE)}, {_each(names, _ADD)}, done.")

    def set_message_bytes_max(self, count: int) -> None:
        """For the channels that are opened from now on."""
        self._control.ctl("eval", f"application:set_env(rabbit, max_message_size, {count}).")

    def delete_vhosts(self, names: Sequence[str]) -> None:
        if names:
            self._control.ctl("eval", f"{_each(names, _DELETE)}, done.")


def _each(vhosts: Sequence[str], expression: str) -> str:
    """Erlang that does it with `V` for each of them in turn."""
    listed = ",".join(f'<<"{name}">>' for name in vhosts)
    return f"[begin {expression} end || V <- [{listed}]]"


def find_rabbitmq() -> Path | None:
    """The folder of the real scripts: what Debian puts on the PATH is a wrapper that insists on its own user."""
    if shutil.which("erl") is None or shutil.which("epmd") is None:
        return None
    folders = [Path(folder) for folder in BIN_FOLDERS]
    on_path = shutil.which("rabbitmq-server")
    if on_path and "wrapper" not in Path(on_path).resolve().name:
        folders.append(Path(on_path).resolve().parent)
    return next((folder for folder in folders if (folder / "rabbitmq-server").exists()), None)


class PrivateRabbitMQ:
    """One node with an epmd of its own under the root folder, as the user rabbitmq when we are root."""

    def __init__(self, root: Path, programs: Path) -> None:
        self._root = root
        self._programs = programs
        self._user = unprivileged_user("rabbitmq")
        self._home = home(root, "rabbitmq", self._user)
        self._log = self._home / "log"
        self._daemon = Daemon(self._home / "pid")
        self._epmd = Daemon(self._home / "epmd.pid")
        # A broker that was killed leaves its epmd behind, which holds a port of ours and is used again.
        running = self._daemon.running() or self._epmd.running()
        self.port, self._dist_port, self._epmd_port = kept_ports(self._home / "ports", 3, running=running)

    def running(self) -> bool:
        return self._daemon.running()

    def start(self) -> None:
        if self.running():
            return
        self._write_files()
        if not self._epmd.running():
            words = ["epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port)]
            self._spawn(self._epmd, words, self._home / "epmd.log")
        self._spawn(self._daemon, [self._programs / "rabbitmq-server"], self._log)
        wait_until(self._ready, self.running, "RabbitMQ", self._log)

    def stop(self) -> None:
        self._daemon.stop(signal.SIGTERM)
        self._epmd.stop()

    def kill(self) -> None:
        self._daemon.kill()

    def remove(self) -> None:
        """Forgets all data; the server is stopped before."""
        remove_home(self._root, "rabbitmq")

    def ctl(self, *words: str) -> str:
        answer = subprocess.run(
            [self._programs / "rabbitmqctl", *words],
            env=self._environ(),
            cwd=self._home,
            capture_output=True,
            text=True,
            check=False,
            **run_as(self._user),
        )
        if answer.returncode != 0:
            raise DaemonError(f"rabbitmqctl {words[0]} failed: {answer.stderr or answer.stdout}\n{tail(self._log)}")
        return str(answer.stdout)

    def _spawn(self, daemon: Daemon, words: Sequence[str | Path], log: Path) -> None:
        daemon.start(words, environ=self._environ(), cwd=self._home, log=log, user=self._user)

    def _ready(self) -> bool:
        """The log's line says that the node has booted, the handshake that its listener serves it."""
        return STARTED in self._log.read_text(errors="replace") and speaks_amqp(self.port)

    def _write_files(self) -> None:
        self._log.unlink(missing_ok=True)
        files = {
            "rabbitmq.conf": CONFIGURATION,
            "advanced.config": "[].\n",
            "enabled_plugins": "[].\n",
            "rabbitmq-env.conf": "",
        }
        for name, content in files.items():
            (self._home / name).write_text(content)
        for name in ("mnesia", "logs", "conf.d"):
            folder = self._home / name
            folder.mkdir(exist_ok=True)
            if self._user:
                os.chown(folder, self._user.uid, self._user.gid)

    def _environ(self) -> dict[str, str]:
        """Every path is named, or the scripts would read the files of the machine's own RabbitMQ under /etc."""
        digest = hashlib.sha256(str(self._home).encode()).hexdigest()[:12]
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self._home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"parley-{digest}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self._home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._home / "logs"),
            "RABBITMQ_CONF_ENV_FILE": str(self._home / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(self._home / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # Makes the script become the Erlang machine instead of staying as its parent: our signals reach it.
            "RUNNING_UNDER_SYSTEMD": "1",
        }


def speaks_amqp(port: int) -> bool:
    """Whether the server answers the protocol header with its first method frame."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(PROTOCOL_HEADER)
            return connection.recv(1) == b"\x01"
    except OSError:
        return False
