"""Which PostgreSQL and RabbitMQ: the environment's, installed programs, a Docker engine, or apt-get; in this order."""

import asyncio
import fcntl
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deploy.local.daemon import DaemonError
from deploy.local.servers import apt, docker
from deploy.local.servers.postgres import DATABASES, Postgres, PrivatePostgres, find_postgres
from deploy.local.servers.rabbitmq import PrivateRabbitMQ, RabbitMQ, find_rabbitmq

DSN_NAMES = {database: f"{database.upper()}_DATABASE_URL" for database in DATABASES}
DEFAULT_PORTS = {"amqp": 5672, "amqps": 5671}
REACH_SECONDS = 5.0
FOUR_WAYS = f"""no way to {{missing}}. Any one of these will do:
  1. set {", ".join(DSN_NAMES.values())} and AMQP_URL to servers that run;
  2. install the programs (PostgreSQL: initdb, postgres, pg_isready; RabbitMQ: rabbitmq-server, with Erlang);
  3. start a Docker engine that `docker info` can reach, with the compose plugin;
  4. on Debian or Ubuntu, run this as root, so that apt-get can install them."""


class ServersError(Exception):
    """PostgreSQL or RabbitMQ cannot be had; the text says what to do."""


@dataclass(frozen=True)
class Servers:
    """The URLs to use. A server given by the environment is somebody else's: there is no object to control it."""

    dsns: Mapping[str, str]
    amqp_url: str
    postgres: Postgres | None
    rabbitmq: RabbitMQ | None

    def urls(self) -> dict[str, str]:
        return {DSN_NAMES[database]: dsn for database, dsn in self.dsns.items()} | {"AMQP_URL": self.amqp_url}

    def stop(self) -> None:
        for server in (self.postgres, self.rabbitmq):
            if server:
                server.stop()


def up(root: Path, environ: Mapping[str, str]) -> Servers:
    """Finds or starts both servers, side by side; instances that already run under this root are used again."""
    given = {database: environ[name] for database, name in DSN_NAMES.items() if environ.get(name)}
    if 0 < len(given) < len(DSN_NAMES):
        raise ServersError(f"set all of {', '.join(DSN_NAMES.values())}, or none of them")
    amqp_url = environ.get("AMQP_URL", "")
    with _locked(root):
        try:
            postgres, rabbitmq = _choose(root, postgres=not given, rabbitmq=not amqp_url)
            _start(postgres, rabbitmq)
        except DaemonError as error:
            raise ServersError(str(error)) from error
    dsns = given or {database: postgres.dsn(database) for database in DATABASES if postgres}
    return Servers(dsns, amqp_url or (rabbitmq.url() if rabbitmq else ""), postgres, rabbitmq)


def down(root: Path, *, remove: bool = False) -> None:
    """Ends what `up` started under this root, and on request forgets its data; starts nothing, installs nothing."""
    if not root.exists():
        return
    with _locked(root):
        for server in _started(root):
            if remove and server.running():
                server.kill()  # an orderly end would first write down what is forgotten then
            server.stop()
            if remove:
                server.remove()


def reach_given(environ: Mapping[str, str]) -> None:
    """Says which servers the environment gives, and raises where one does not answer: services would wait for it in
    silence, and for minutes."""
    for name in (*DSN_NAMES.values(), "AMQP_URL"):
        if environ.get(name):
            _reach(name, environ[name])


def _reach(name: str, url: str) -> None:
    parts = urlsplit(url)
    if not parts.hostname:
        return  # such as a socket's folder: whoever connects will say what is wrong
    port = parts.port or DEFAULT_PORTS.get(parts.scheme, 5432)
    print(f"  {name} of your environment: {parts.hostname}:{port}", file=sys.stderr, flush=True)
    try:
        socket.create_connection((parts.hostname, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ServersError(
            f"nothing answers at {parts.hostname}:{port}, which {name} of your environment names ({error}); "
            "start it, or unset the variable"
        ) from error


def _choose(root: Path, *, postgres: bool, rabbitmq: bool) -> tuple[Postgres | None, RabbitMQ | None]:
    """For each server that is wanted an object that can start it."""
    missing = [
        package
        for package, wanted, find in (
            ("postgresql", postgres, find_postgres),
            ("rabbitmq-server", rabbitmq, find_rabbitmq),
        )
        if wanted and not find()
    ]
    if missing and not docker.answers():
        if not apt.usable():
            raise ServersError(FOUR_WAYS.format(missing=" and ".join(missing)))
        with _progress(f"apt-get install {' '.join(missing)}"):
            apt.install(missing)
    return (_postgres(root) if postgres else None, _rabbitmq(root) if rabbitmq else None)


def _postgres(root: Path) -> Postgres:
    programs = find_postgres()
    return Postgres(PrivatePostgres(root, programs) if programs else docker.Container(root, "postgres"))


def _rabbitmq(root: Path) -> RabbitMQ:
    programs = find_rabbitmq()
    return RabbitMQ(PrivateRabbitMQ(root, programs) if programs else docker.Container(root, "rabbitmq"))


def _started(root: Path) -> list[Postgres | RabbitMQ]:
    """What left traces under this root: nothing is made to find out."""
    found: list[Postgres | RabbitMQ] = []
    if (root / "postgres").exists():
        found.append(_postgres(root))
    if (root / "rabbitmq").exists():
        found.append(_rabbitmq(root))
    return found


def _start(postgres: Postgres | None, rabbitmq: RabbitMQ | None) -> None:
    with ThreadPoolExecutor(2) as pool:
        starts = []
        if postgres:
            starts.append(pool.submit(_start_postgres, postgres))
        if rabbitmq:
            starts.append(pool.submit(_start_rabbitmq, rabbitmq))
        for start in starts:
            start.result()


def _start_postgres(postgres: Postgres) -> None:
    if not postgres.running():
        with _progress(f"PostgreSQL on port {postgres.port}"):
            postgres.start()
    for database in DATABASES:
        asyncio.run(postgres.create_database(database))


def _start_rabbitmq(rabbitmq: RabbitMQ) -> None:
    if not rabbitmq.running():
        with _progress(f"RabbitMQ on port {rabbitmq.port}"):
            rabbitmq.start()


@contextmanager
def _progress(what: str) -> Iterator[None]:
    started = time.monotonic()
    print(f"  {what}: starting", file=sys.stderr, flush=True)
    yield
    print(f"  {what}: ready after {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Two commands on one root take turns, or both would start a server on the same data."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
