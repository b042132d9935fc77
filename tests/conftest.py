"""Fixtures of all tests: the servers of the session, a fresh database and a fresh virtual host for each test."""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from deploy.local import daemon
from deploy.local.daemon import Daemon
from deploy.local.environment import SERVICES
from deploy.local.servers import Postgres, RabbitMQ, Servers, down, up
from tests.support import forking
from tests.support.scheduling import ByStack, place
from tests.support.servers import Databases, Vhosts, run_apart, session_servers
from tests.support.stack import ENDS_SOON, Stack, running_stack

SHARED_ROOT = os.environ.get("PARLEY_TEST_SERVERS")

Daemon.spawn = staticmethod(forking.spawn)

# No bound on the time of an example, which would measure the machine; and the same examples each time.
settings.load_profile("ci")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.nodeid))  # stable: within a file the order stays


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByStack:
    return ByStack(config, log)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """PARLEY_TEST_SERVERS names a root folder whose servers are used, and left running, by session after session."""
    with session_servers(SHARED_ROOT) as found:
        yield found


@pytest.fixture(scope="session")
def postgres_server(servers: Servers) -> Postgres:
    assert servers.postgres
    return servers.postgres


@pytest.fixture(scope="session")
def rabbitmq_server(servers: Servers) -> RabbitMQ:
    assert servers.rabbitmq
    return servers.rabbitmq


@pytest.fixture(scope="session")
def databases(postgres_server: Postgres) -> Iterator[Databases]:
    databases = Databases(postgres_server)
    yield databases
    if SHARED_ROOT:  # servers of this session's own end with all they hold
        run_apart(databases.drop_all())


@pytest.fixture(scope="session")
def vhosts(rabbitmq_server: RabbitMQ) -> Iterator[Vhosts]:
    vhosts = Vhosts(rabbitmq_server)
    yield vhosts
    if SHARED_ROOT:
        vhosts.delete_all()


@pytest.fixture
def database_dsn(databases: Databases) -> Callable[[str], Awaitable[str]]:
    """`await database_dsn("billing")`: the DSN of a fresh database with that service's schema."""
    return databases.fresh


@pytest.fixture
def amqp_url(rabbitmq_server: RabbitMQ, vhosts: Vhosts) -> Iterator[str]:
    """A virtual host of this test's own."""
    vhost = vhosts.take()
    yield rabbitmq_server.url(vhost)
    vhosts.give_back(vhost)


@pytest.fixture(scope="session")
def breakable(servers: Servers, databases: Databases, vhosts: Vhosts) -> Iterator[tuple[Servers, Databases, Vhosts]]:
    """This session's own servers, which nobody else uses while a file that breaks them runs (tests.support.scheduling
    has those files first, before a stack is started for all); where the session's are shared, a pair beside them."""
    if not SHARED_ROOT:
        yield servers, databases, vhosts
        return
    with session_servers(None) as own:
        assert own.postgres and own.rabbitmq
        yield own, Databases(own.postgres), Vhosts(own.rabbitmq)


@pytest.fixture(scope="module")
def world_servers(breakable: tuple[Servers, Databases, Vhosts]) -> Iterator[Servers]:
    """Servers that a world may kill, with databases and a virtual host of its own: to start some for each world would
    cost seconds of CPU."""
    servers, databases, vhosts = breakable
    assert servers.postgres and servers.rabbitmq
    vhost = vhosts.take()
    dsns = {service: run_apart(databases.fresh(service)) for service in SERVICES}
    yield replace(servers, dsns=dsns, amqp_url=vhosts.url(vhost))
    servers.postgres.start()
    servers.rabbitmq.start()
    vhosts.give_back(vhost)


@pytest.fixture
def disposable_servers(tmp_path: Path) -> Iterator[Servers]:
    """Servers that a test may kill: the session's are used by others."""
    yield up(tmp_path, {})
    down(tmp_path, remove=True)


@pytest.fixture(scope="module")
def narrow_vhosts(rabbitmq_server: RabbitMQ, vhosts: Vhosts) -> Iterator[Vhosts]:
    """While the tests of this file run, RabbitMQ takes no message above 64 KiB."""
    rabbitmq_server.set_message_bytes_max(64 * 1024)
    yield vhosts
    rabbitmq_server.set_message_bytes_max(128 * 1024 * 1024)


@pytest.fixture(scope="session")
def stack(
    rabbitmq_server: RabbitMQ, databases: Databases, vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The whole system, started once and as anybody starts it: tests keep apart by making accounts of their own
    (tests.support.stack)."""
    with ExitStack() as ends:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Daemon, "spawn", staticmethod(daemon.spawn))
            started = ends.enter_context(
                running_stack(
                    tmp_path_factory.mktemp("stack"),
                    rabbitmq_server,
                    databases,
                    vhosts,
                    overrides=dict.fromkeys(SERVICES, ENDS_SOON),
                )
            )
        yield started
