"""A whole system that may be broken: servers of its own, replicas, and a proxy in every connection between parts."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from deploy.local.daemon import Child, Daemon, DaemonError, child
from deploy.local.environment import LOCAL, SERVICES
from deploy.local.seed import Account, make_account, subscribed_account
from deploy.local.servers import Postgres, RabbitMQ, Servers, down, up
from deploy.local.servers.find import DSN_NAMES
from deploy.local.stack import Stack
from services.orchestrator.routing import Deployment, Models
from tests.support.faults.balancer import Balancer
from tests.support.faults.buckets import keep_journal
from tests.support.faults.metrics import Metrics
from tests.support.faults.proxy import Mode, Proxies, Proxy
from tests.support.servers import run_apart
from tests.support.stack import environment

T = TypeVar("T")

PEERS: Mapping[str, tuple[str, ...]] = {
    "gateway": ("broker", "database", "billing", "results"),
    "orchestrator": ("broker", "database", "billing", "results", "provider"),
    "billing": ("broker", "database"),
    "results": ("broker", "database"),
}
"""Whom each service connects to, and so where a proxy stands."""

GRACE_SECONDS = 20
LEASE_SECONDS = 3
SETTINGS: Mapping[str, str] = {
    "GRACE_SECONDS": str(GRACE_SECONDS),
    "LEASE_SECONDS": str(LEASE_SECONDS),
    "DRAIN_SECONDS": "4",
    "CONNECT_SECONDS": "2",
    "FIRST_TOKEN_SECONDS": "60",
    "STALL_SECONDS": "1.5",
    "ATTEMPT_SECONDS": "90",
    "SWEEP_SECONDS": "1",
}
MODELS = LOCAL / "models.toml"
SKEWED = "tests.support.faults.skewed"
SERVED = ("gateway", "billing", "results")
"""Who is called over HTTP."""
DRAIN_DELAY_SECONDS = "5"
DEATH_SECONDS = 30.0
END_GRACE_SECONDS = 60.0
"""Like terminationGracePeriodSeconds: whoever has not ended by then is killed."""
STARTS_MAX = 3


@dataclass(frozen=True)
class Outage:
    """Something without which no request can end was away; instants of the machine's wall clock."""

    what: str
    since: float
    until: float


class World:
    """Every action blocks until it is done: from a test that also runs a load, call it with asyncio.to_thread."""

    def __init__(
        self,
        root: Path,
        servers: Servers | None = None,
        *,
        replicas: Mapping[str, int] | None = None,
        balanced: bool = False,
        settings: Mapping[str, Mapping[str, str]] | None = None,
        models: Path = MODELS,
        skews: Mapping[str, float] | None = None,
    ) -> None:
        """`servers`: what it may break, with databases and a virtual host of its own; without it, it starts some under
        its root and removes them. `balanced`: clients and services reach a service through a balancer, as in a cluster,
        and replicas give it the time to notice that they go. `settings` by service or by replica; `skews` by replica:
        by how many seconds the wall clock of its host is wrong."""
        self._root = root
        self._given = servers
        self._replicas = replicas or {"orchestrator": 2, "gateway": 2}
        self._balanced = balanced
        self._settings = settings or {}
        self._models = models
        self._skews = skews or {}
        self._proxies = Proxies()
        self._suspended: set[str] = set()
        self._away: dict[str, float] = {}
        self._servers: Servers | None = None
        self._stack: Stack | None = None
        self.links: dict[tuple[str, str], Proxy] = {}
        self.balancers: dict[str, Balancer] = {}
        self.metrics = Metrics()
        self.outages: list[Outage] = []

    def start(self) -> None:
        self._servers = self._given or up(self._root / "servers", {})
        self.links = {
            (name, peer): self._proxies.listen() for name in self.names() for peer in PEERS[name.partition("-")[0]]
        }
        base = environment() | dict(SETTINGS)
        overrides = {name: self._through_proxies(name) for name in self.names()}
        self._stack = Stack(
            self._root / "stack", self._servers.urls(), base, replicas=self._replicas, overrides=overrides
        )
        for name, seconds in self._skews.items():
            process = self._stack.processes[name]
            self._stack.processes[name] = replace(process, module=SKEWED, arguments=(str(seconds), process.module))
        if self._balanced:
            self.balancers = {service: self._balancer(service) for service in SERVED}
        for (_, peer), proxy in self.links.items():
            proxy.upstream = self._upstream(peer)
        self._stack.start()
        run_apart(keep_journal(self._servers.dsns["orchestrator"]))
        self._stack.admin_key()
        self.wait_until_routed()

    def stop(self) -> None:
        for name in list(self._suspended):
            self.resume(name)
        if self._stack is not None:
            for name in self._stack.processes:
                self._stack.kill_process(name)
            self._stack.stop()
        if self._given is None:
            down(self._root / "servers", remove=True)
        for balancer in self.balancers.values():
            balancer.close()
        self._proxies.close()

    @property
    def stack(self) -> Stack:
        assert self._stack is not None, "the world has not been started"
        return self._stack

    @property
    def servers(self) -> Servers:
        assert self._servers is not None, "the world has not been started"
        return self._servers

    @property
    def postgres(self) -> Postgres:
        assert self.servers.postgres is not None
        return self.servers.postgres

    @property
    def rabbitmq(self) -> RabbitMQ:
        assert self.servers.rabbitmq is not None
        return self.servers.rabbitmq

    @property
    def deployments(self) -> Sequence[Deployment]:
        return Models.model_validate(tomllib.loads(self._models.read_text())).deployments()

    def names(self, service: str | None = None) -> list[str]:
        """The replicas, of one service or of all: `gateway`, `gateway-2`, ..."""
        services = SERVICES if service is None else (service,)
        numbers = {name: range(1, self._replicas.get(name, 1) + 1) for name in services}
        return [
            name if number == 1 else f"{name}-{number}"
            for name in services
            for _, number in product((name,), numbers[name])
        ]

    def gateways(self) -> list[str]:
        if "gateway" in self.balancers:
            return [self.balancers["gateway"].url]
        return [self.stack.url(name) for name in self.names("gateway")]

    def wait_until_routed(self) -> None:
        """Until every balancer has noticed all replicas of its service."""
        for service, balancer in self.balancers.items():
            balancer.wait_until_routed(self.names(service))

    def account(self, name: str) -> Account:
        """One that may work."""
        return subscribed_account(self.stack, name)

    def stranger(self, name: str) -> Account:
        """One without a subscription."""
        return make_account(self.stack, name)

    def kill(self, name: str) -> None:
        self.metrics.scrape(name, self.stack.ops_url(name))
        self._gone(name)
        self.stack.kill_process(name)
        self._suspended.discard(name)
        self.metrics.restarted(name)

    def terminate(self, name: str) -> int:
        """An orderly end, as in a rolling deployment; the exit status, -9 for one that does not end in time."""
        process = self._process(name)
        self.metrics.scrape(name, self.stack.ops_url(name))
        self._gone(name)
        process.terminate()
        try:
            return process.wait(END_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.stack.kill_process(name)
            return process.wait()
        finally:
            self.metrics.restarted(name)

    def restart(self, name: str, failpoints: str = "") -> None:
        """Start what is dead, again if need be; with `failpoints` it may be dead before it is ready."""
        process = self.stack.processes[name]
        environ = {**process.environ, "FAILPOINTS": failpoints}
        self.stack.processes[name] = replace(process, environ=environ)
        self._supervise(name, may_die=bool(failpoints))
        self._back(name)

    def _supervise(self, name: str, *, may_die: bool) -> None:
        """A service gives up where its database goes away while it starts; whoever started it starts it again."""
        for left in range(STARTS_MAX - 1, -1, -1):
            try:
                self.stack.start_process(name)
            except DaemonError:
                if may_die and name in self.stack.dead():
                    return
                if not left:
                    raise
            else:
                return

    def arm(self, name: str, failpoints: str) -> None:
        """Restart it so that it dies, as by kill -9, where `point=count` says."""
        if name not in self.stack.dead():
            self.kill(name)
        self.restart(name, failpoints)

    def wait_for_death(self, name: str, seconds: float = DEATH_SECONDS) -> bool:
        """Whether the process died within so long."""
        pid = self.pid(name)
        died = pid is None or _ends(pid, seconds)
        if died:
            self._gone(name)
            self.metrics.restarted(name)
        return died

    def suspend(self, name: str) -> None:
        self.metrics.scrape(name, self.stack.ops_url(name))
        self._gone(name)
        self.signal(name, signal.SIGSTOP)
        self._suspended.add(name)

    def resume(self, name: str) -> None:
        self._suspended.discard(name)
        self.signal(name, signal.SIGCONT)
        self._back(name)

    def bounce_rabbitmq(self, down_seconds: float = 0.0) -> None:
        """Killed, away for so long, started on what its disk has."""
        with self._outage("broker"):
            self.rabbitmq.kill()
            time.sleep(down_seconds)
            self.rabbitmq.start()

    def bounce_postgres(self, down_seconds: float = 0.0) -> None:
        with self._outage("postgres"):
            self.postgres.kill()
            time.sleep(down_seconds)
            self.postgres.start()

    def heal(self) -> None:
        """Everything runs, everything passes."""
        for proxy in self.links.values():
            proxy.heal()
        for name in list(self._suspended):
            self.resume(name)
        self.postgres.start()
        self.rabbitmq.start()
        for name in self.stack.dead():
            self.restart(name)

    def scrape(self) -> Metrics:
        for name in self.names():
            if name not in self._suspended:
                self.metrics.scrape(name, self.stack.ops_url(name))
        return self.metrics

    def outage_seconds(self, since: float, until: float) -> float:
        """How much of this time something essential was away; what was away together counts once."""
        away, covered = 0.0, since
        for outage in sorted(self.outages, key=lambda outage: outage.since):
            away += max(0.0, min(until, outage.until) - max(covered, outage.since))
            covered = max(covered, outage.until)
        return away

    def during(self, name: str, peer: str, mode: Mode, seconds: float, *, cut: bool = False) -> None:
        """One link of one replica in this mode for so long."""
        proxy = self.links[name, peer]
        self._gone(name)
        proxy.set_mode(mode)
        if cut:
            proxy.cut()
        time.sleep(seconds)
        proxy.heal()
        self._back(name)

    @contextmanager
    def half_open(self, *links: tuple[str, str]) -> Iterator[None]:
        """Every open connection of these links in silence. Leave the block when those who had them have noticed."""
        for name, peer in links:
            self._gone(name)
            assert self.links[name, peer].half_open(), f"{name} has no connection to the {peer}"
        yield
        for name, _ in links:
            self._back(name)

    @contextmanager
    def _outage(self, what: str) -> Iterator[None]:
        since = time.time()
        try:
            yield
        finally:
            self.outages.append(Outage(what, since, time.time()))

    def _gone(self, name: str) -> None:
        self._away.setdefault(name, time.time())

    def _back(self, name: str) -> None:
        """An outage, where it is the one process of a service that every ending passes through."""
        since = self._away.pop(name, None)
        if since is not None and self.names("results") == [name]:
            self.outages.append(Outage(name, since, time.time()))

    def signal(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, number)

    def pid(self, name: str) -> int | None:
        return Daemon(self.stack.root / "run" / f"{name}.pid").pid()

    def _process(self, name: str) -> Child:
        pid = self.pid(name)
        process = child(pid) if pid is not None else None
        assert process is not None, f"{name} does not run"
        return process

    def _through_proxies(self, name: str) -> dict[str, str]:
        service = name.partition("-")[0]
        assert self._servers is not None
        addresses = {peer: f"127.0.0.1:{self.links[name, peer].port}" for peer in PEERS[service]}
        found = {
            "AMQP_URL": _at(self._servers.amqp_url, addresses["broker"]),
            DSN_NAMES[service]: _at(self._servers.dsns[service], addresses["database"]),
        }
        found |= {
            f"{peer.upper()}_URL": f"http://{addresses[peer]}" for peer in ("billing", "results") if peer in addresses
        }
        if "provider" in addresses:
            found["OPENAI_BASE_URL"] = f"http://{addresses['provider']}/v1"
        if self._balanced:
            found["DRAIN_DELAY_SECONDS"] = DRAIN_DELAY_SECONDS
        found["MODELS_FILE"] = str(self._models)
        return {**found, **self._settings.get(service, {}), **self._settings.get(name, {})}

    def _balancer(self, service: str) -> Balancer:
        replicas = {name: (self.stack.url(name), self.stack.ops_url(name)) for name in self.names(service)}
        return Balancer(self._proxies, replicas)

    def _upstream(self, peer: str) -> tuple[str, int]:
        match peer:
            case "broker":
                return "127.0.0.1", self.rabbitmq.port
            case "database":
                return "127.0.0.1", self.postgres.port
            case "provider":
                url = self.stack.url("llm")
            case _ if peer in self.balancers:
                url = self.balancers[peer].url
            case _:
                url = self.stack.url(peer)
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port


def _ends(pid: int, seconds: float) -> bool:
    """Whether the process ends within so long; told by the kernel."""
    handle = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(handle)


def _at(url: str, address: str) -> str:
    """The same URL at another host and port."""
    parts = urlsplit(url)
    user, separator, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user}{separator}{address}").geturl()


@contextmanager
def running_world(world: World) -> Iterator[World]:
    """One that is ready, and that ends with the block, also where it did not get so far."""
    try:
        world.start()
        yield world
    finally:
        world.stop()


async def apart(action: Callable[..., T], *arguments: object) -> T:
    """What blocks, in a thread of its own: the loop that the load runs on goes on."""
    return await asyncio.to_thread(action, *arguments)
