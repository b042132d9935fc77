"""Whole stacks for tests: the four services and both stand-ins as processes, on databases and a vhost of their own."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deploy.local.seed import Account, make_account, subscribe, subscribed_account
from deploy.local.servers import RabbitMQ
from deploy.local.servers.find import DSN_NAMES
from deploy.local.stack import Stack
from tests.support.servers import Databases, Vhosts, run_apart

__all__ = ["Account", "Stack", "make_account", "running_stack", "subscribe", "subscribed_account"]

# What a process needs to run at all. The rest of the environment may name the keys of somebody's real accounts.
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
# A tenth of a service's start: certificates of authorities that no test calls, and a look for plug-ins of pydantic.
QUICK_START = {"SSL_CERT_FILE": os.devnull, "PYDANTIC_DISABLE_PLUGINS": "true"}
# For stacks whose end is of no interest: nobody routes to them any more, and nobody waits for what still runs.
ENDS_SOON = {"DRAIN_DELAY_SECONDS": "0", "DRAIN_SECONDS": "4"}


@contextmanager
def running_stack(
    root: Path,
    rabbitmq: RabbitMQ,
    databases: Databases,
    vhosts: Vhosts,
    *,
    replicas: Mapping[str, int] | None = None,
    overrides: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Stack]:
    """A stack that is ready, and that ends with the block; its logs stay under `root`."""
    vhost = vhosts.take()
    dsns = {name: run_apart(databases.fresh(service)) for service, name in DSN_NAMES.items()}
    stack = Stack(root, dsns | {"AMQP_URL": rabbitmq.url(vhost)}, environment(), replicas=replicas, overrides=overrides)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
        vhosts.give_back(vhost)


def environment() -> dict[str, str]:
    """What the processes of a stack inherit."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ} | QUICK_START
