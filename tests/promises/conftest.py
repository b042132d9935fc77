"""One stack for all promises: two replicas of each service, so that what comes at once comes to different processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deploy.local.environment import SERVICES
from deploy.local.servers import RabbitMQ
from tests.e2e.conftest import http, llm, stripe
from tests.support.servers import Databases, Vhosts
from tests.support.stack import ENDS_SOON, Stack, running_stack

__all__ = ["http", "llm", "stripe"]


@pytest.fixture(scope="package")
def stack(
    rabbitmq_server: RabbitMQ, databases: Databases, vhosts: Vhosts, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """Not the stack of the end-to-end tests: rows are compared whole here, so nobody else may write any."""
    with running_stack(
        tmp_path_factory.mktemp("promises"),
        rabbitmq_server,
        databases,
        vhosts,
        replicas=dict.fromkeys(SERVICES, 2),
        # Whatever may be logged is logged.
        overrides={service: {"LOG_LEVEL": "DEBUG", **ENDS_SOON} for service in SERVICES},
    ) as started:
        yield started
