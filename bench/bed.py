"""Where it is measured: servers of the benchmark's own, on which stacks and the raw pipeline are started."""

import asyncio
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg

from bench.raw.pipeline import RawPipeline
from bench.steps.pipeline import StepsPipeline
from bench.systems import Parley, Raw
from deploy.local.environment import LLM, SERVICES
from deploy.local.plain_http import ask
from deploy.local.seed import subscribed_account
from deploy.local.servers import Postgres, RabbitMQ, Servers, down, up
from deploy.local.servers.find import DSN_NAMES
from deploy.local.stack import Stack

ACCOUNTS = 8
INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
"""The rest of the environment may name the keys of somebody's real accounts."""
PLANS_FILE = Path(__file__).with_name("plans.toml")
# The statements of the services are counted from the server's log. Off but for the parts that count.
STATEMENT_LOG = {
    "logging_collector": "on",
    "log_destination": "jsonlog",
    "log_parameter_max_length": "0",
    "log_rotation_size": "0",
    "log_rotation_age": "0",
}


class Bed:
    """Every action blocks: from a coroutine call it with asyncio.to_thread."""

    def __init__(self, root: Path, postgres: Postgres, rabbitmq: RabbitMQ) -> None:
        self.root = root
        self.postgres = postgres
        self.rabbitmq = rabbitmq
        self.environ = {name: os.environ[name] for name in INHERITED if name in os.environ}

    @contextmanager
    def parley(
        self,
        name: str,
        *,
        accounts: int = ACCOUNTS,
        overrides: Mapping[str, Mapping[str, str]] | None = None,
        module: str | None = None,
    ) -> Iterator[Parley]:
        """A stack on databases and a vhost of its own; `module` runs each service in place of its own `__main__`."""
        databases = {service: f"{name}_{service}" for service in SERVICES}
        self._make_databases(list(databases.values()))
        self.rabbitmq.add_vhosts([name])
        urls = {DSN_NAMES[service]: self.postgres.dsn(database) for service, database in databases.items()}
        stack = Stack(
            self.root / name,
            urls | {"AMQP_URL": self.rabbitmq.url(name)},
            self.environ | {"PLANS_FILE": str(PLANS_FILE)},
            overrides=overrides,
        )
        if module is not None:
            for service in SERVICES:
                process = stack.processes[service]
                stack.processes[service] = replace(process, module=module, arguments=(service,))
        try:
            stack.start()
            with ThreadPoolExecutor(accounts) as pool:
                stack.admin_key()
                made = list(pool.map(lambda number: subscribed_account(stack, f"bench {number}"), range(accounts)))
            yield Parley(stack, made)
        finally:
            stack.stop()
            self.rabbitmq.delete_vhosts([name])
            self._drop_databases(list(databases.values()))

    @contextmanager
    def raw(self, llm_url: str, pipeline: type[RawPipeline] = RawPipeline) -> Iterator[Raw]:
        name = pipeline.name
        self._make_databases([name])
        self.rabbitmq.add_vhosts([name])
        running = pipeline(
            self.root / name, dsn=self.postgres.dsn(name), amqp_url=self.rabbitmq.url(name), llm_url=llm_url
        )
        try:
            running.start(self.environ)
            yield Raw(running)
        finally:
            running.stop()
            self.rabbitmq.delete_vhosts([name])
            self._drop_databases([name])

    def steps(self, llm_url: str) -> AbstractContextManager[Raw]:
        return self.raw(llm_url, StepsPipeline)

    def server_pids(self) -> dict[str, int]:
        """As the servers themselves say it, so that it does not matter who started them."""
        return {
            "postgres": asyncio.run(_postmaster(self.postgres.dsn("postgres"))),
            "rabbitmq": int(self.rabbitmq.ctl("eval", "os:getpid().").strip().strip('"')),
        }

    def _make_databases(self, names: Sequence[str]) -> None:
        self._drop_databases(names)
        for name in names:
            asyncio.run(self.postgres.create_database(name))

    def _drop_databases(self, names: Sequence[str]) -> None:
        asyncio.run(self.postgres.drop_databases(names))


@contextmanager
def private_bed(root: Path) -> Iterator[Bed]:
    """Servers of its own, with PostgreSQL's log of statements ready; all of it is forgotten at the end."""
    down(root / "servers", remove=True)  # what a run that was killed left here
    shutil.rmtree(root, ignore_errors=True)
    servers: Servers = up(root / "servers", {})
    try:
        assert servers.postgres, "the environment gave no URLs"
        assert servers.rabbitmq, "the environment gave no URLs"
        asyncio.run(_set(servers.postgres.dsn("postgres"), STATEMENT_LOG))
        servers.postgres.restart()
        yield Bed(root, servers.postgres, servers.rabbitmq)
    finally:
        down(root / "servers", remove=True)


def set_provider(parley: Parley, **behaviour: float) -> None:
    """What the stand-in does with every call, such as first_byte_ms."""
    ask("PUT", f"{parley.stack.ops_url(LLM)}/default", body=behaviour)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


async def _set(dsn: str, settings: Mapping[str, str]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for name, value in settings.items():
            await connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    finally:
        await connection.close()


async def _postmaster(dsn: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        folder = await connection.fetchval("SHOW data_directory")
    finally:
        await connection.close()
    return int((Path(folder) / "postmaster.pid").read_text().split()[0])
