"""The real PostgreSQL and RabbitMQ of a test session, and the fresh databases and virtual hosts of its tests."""

import asyncio
import fcntl
import secrets
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import aio_pika

from deploy.local.servers import Postgres, RabbitMQ, Servers, down, up
from shared.messaging.broker import Broker
from shared.messaging.topology import QUEUES
from shared.migrate import migrate

T = TypeVar("T")
SERVICES = Path(__file__).parents[2] / "services"
ROOT = Path(__file__).parents[2] / ".local" / "test"
SESSIONS_MAX = 8
VHOSTS_PER_CALL = 32
RESTING = 4
"""So many tests later what was on its way to a queue has come."""


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end in a thread of its own, for fixtures that no event loop belongs to."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@contextmanager
def session_servers(shared_root: str | None) -> Iterator[Servers]:
    """The servers under `shared_root`, left running; without one, instances of this session that end with it.

    The environment's URLs are not used: they may be those of a stack that somebody works with.
    """
    if shared_root:
        yield up(Path(shared_root), {})
        return
    with _free_slot() as root:
        down(root, remove=True)  # what a session that was killed left here
        try:
            yield up(root, {})
        finally:
            down(root, remove=True)


@contextmanager
def _free_slot() -> Iterator[Path]:
    """A folder that no other session of this checkout uses: its lock is held for as long as this process lives."""
    ROOT.mkdir(parents=True, exist_ok=True)
    for number in range(SESSIONS_MAX):
        with (ROOT / f"{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield ROOT / str(number)
            return
    raise RuntimeError(f"{SESSIONS_MAX} test sessions run in this checkout already")


class Databases:
    """Gives fresh databases quickly: copies of a template that was migrated once per service and session."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self._prefix = f"test_{secrets.token_hex(4)}"
        self._templates: dict[str, str] = {}
        self._made: list[str] = []

    async def fresh(self, service: str) -> str:
        """The DSN of a new database with the service's schema."""
        template = self._templates.get(service) or await self._migrated(service)
        return await self._create(f"{service}_{len(self._made)}", template)

    async def empty(self) -> str:
        return await self._create(f"empty_{len(self._made)}", None)

    async def drop_all(self) -> None:
        await self._postgres.drop_databases(self._made)

    async def _migrated(self, service: str) -> str:
        await migrate(await self._create(f"{service}_template", None), service, SERVICES / service / "migrations")
        self._templates[service] = self._made[-1]
        return self._made[-1]

    async def _create(self, name: str, template: str | None) -> str:
        self._made.append(f"{self._prefix}_{name}")
        return await self._postgres.create_database(self._made[-1], template)


class Vhosts:
    """Gives fresh virtual hosts, made many at a time: the call itself costs as much as ten."""

    def __init__(self, rabbitmq: RabbitMQ) -> None:
        self._rabbitmq = rabbitmq
        self._prefix = f"test-{secrets.token_hex(4)}"
        self._count = 0
        self._unused: list[str] = []
        self._done: list[str] = []
        self._with_queues: deque[str] = deque()

    def take(self) -> str:
        if not self._unused:
            self._unused = [f"{self._prefix}-{self._count + number}" for number in range(VHOSTS_PER_CALL)]
            self._count += VHOSTS_PER_CALL
            self._rabbitmq.add_vhosts(self._unused, instead_of=self._done)
            self._done = []
        return self._unused.pop()

    def url(self, vhost: str) -> str:
        return self._rabbitmq.url(vhost)

    @asynccontextmanager
    async def with_queues(self) -> AsyncIterator[str]:
        """The URL of one that has all queues, with nothing in them and nobody at them. Test after test uses it, each
        after some others: to make these queues and to delete them costs the broker more than most tests do."""
        vhost = await self._emptied() or await self._declared()
        yield self.url(vhost)
        self._with_queues.append(vhost)

    async def _emptied(self) -> str | None:
        while len(self._with_queues) >= RESTING:
            vhost = self._with_queues.popleft()
            if await _empty(self.url(vhost)):
                return vhost
            self._done.append(vhost)
        return None

    async def _declared(self) -> str:
        vhost = self.take()
        broker = Broker(self.url(vhost), service="tests", settle_seconds=0)
        await broker.start()
        await broker.stop()
        return vhost

    def give_back(self, vhost: str) -> None:
        """Deleted with the others when the next are made: until then its queues cost the broker a little."""
        self._done.append(vhost)

    def delete_all(self) -> None:
        self._rabbitmq.delete_vhosts([*self._done, *self._unused, *self._with_queues])


async def _empty(url: str) -> bool:
    """Purges all queues; not where a test has left somebody at one of them, or has taken one away."""
    async with await aio_pika.connect(url) as connection:
        channel = await (await connection.channel()).get_underlay_channel()
        try:
            for queue in QUEUES:
                if (await channel.queue_declare(queue.name, passive=True)).consumer_count:
                    return False
                await channel.queue_purge(queue.name)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
    return True
