"""The connections to RabbitMQ: one for publishing, one for consuming, restored whenever they are lost."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import aio_pika
from aio_pika.abc import AbstractRobustChannel, AbstractRobustConnection, AbstractRobustQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity

from shared.logs import get_logger
from shared.messaging.topology import EXCHANGE, QUEUES, Queue
from shared.messaging.transport import GatheringConnection
from shared.metrics import gauge
from shared.resource import Resource

log = get_logger(__name__)

_CONNECT_TIMEOUT_SECONDS: Final = 5.0
_CLOSE_TIMEOUT_SECONDS: Final = 1.0
_RECONNECT_SECONDS: Final = 0.5
_FIRST_CONNECT_PAUSE_SECONDS_MAX: Final = 4.0
_HEARTBEAT_SECONDS: Final = 5
"""The driver gives a silent connection up after three of these and some: that must be well within the grace."""

_DECLARE_SECONDS_MAX: Final = 30.0
_COUNT_SECONDS: Final = 15.0

_messages = gauge("queue_messages", "Messages that wait in a queue of the broker for a consumer.", ("queue",))
_connected = gauge("broker_connected", "1 while both connections to the broker are up; NaN before the first is tried.")
# A process that still waits for its database has lost no broker.
_connected.set(math.nan)


class Broker(Resource):
    """A process's two connections. A blocked or slow publisher so never delays deliveries and their acks.

    `settle_seconds` is waited after a queue's first declaration only: RabbitMQ 3.10 loses a quorum queue for ever
    when it is killed within the first half second of that queue's life.
    """

    start_seconds_max = None  # As long as the broker is away; what is asked of it then has its own bound.

    def __init__(self, url: str, *, service: str, settle_seconds: float = 2.0) -> None:
        self._url = url
        self._service = service
        self._settle_seconds = settle_seconds
        self._on_reconnect: list[Callable[[], None]] = []
        self._topology: AbstractRobustChannel | None = None
        self._publishing: AbstractRobustConnection | None = None
        self._consuming: AbstractRobustConnection | None = None
        self._counting: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def start(self) -> None:
        # Asked for by whoever reads the metrics: not every process is probed.
        _connected.set_function(lambda: self.ready)
        self._publishing = await self._connect("publish")
        self._consuming = await self._connect("consume")
        self._consuming.reconnect_callbacks.add(self._reconnected)
        async with asyncio.timeout(_DECLARE_SECONDS_MAX):
            is_new = await self._declare_topology()
        if is_new:
            await asyncio.sleep(self._settle_seconds)
        self._counting = asyncio.create_task(self._count_forever())

    async def stop(self) -> None:
        self._stopping.set()
        if self._counting is not None:
            # Not cancelled at once: in the middle of a call the driver may make a lost connection of that.
            await asyncio.wait({self._counting}, timeout=_CLOSE_TIMEOUT_SECONDS)
            self._counting.cancel()
        for connection in (self._consuming, self._publishing):
            if connection is not None:
                with passing_over_losses("broker.not_closed"):
                    async with asyncio.timeout(_CLOSE_TIMEOUT_SECONDS):
                        await connection.close()

    @property
    def ready(self) -> bool:
        """Whether both connections are up at this moment."""
        return all(
            connection is not None and connection.connected.is_set() and not connection.is_closed
            for connection in (self._publishing, self._consuming)
        )

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call this whenever the consuming connection came back after a loss."""
        self._on_reconnect.append(callback)

    async def publishing_channel(self, *, confirms: bool) -> AbstractRobustChannel:
        """A channel for publishing; unroutable mandatory messages raise where `confirms` is set."""
        assert self._publishing is not None, "the broker has not been started"
        channel = self._publishing.channel(publisher_confirms=confirms, on_return_raises=confirms)
        await channel.initialize()
        return channel

    async def consuming_channel(self, *, prefetch: int) -> AbstractRobustChannel:
        """A channel that has at most `prefetch` unacknowledged deliveries at a time."""
        assert self._consuming is not None, "the broker has not been started"
        channel = self._consuming.channel(publisher_confirms=False)
        await channel.initialize()
        await channel.set_qos(prefetch_count=prefetch)
        return channel

    async def _connect(self, purpose: str) -> AbstractRobustConnection:
        pause_seconds = _RECONNECT_SECONDS
        while True:
            try:
                return await aio_pika.connect_robust(
                    self._url,
                    timeout=_CONNECT_TIMEOUT_SECONDS,
                    reconnect_interval=_RECONNECT_SECONDS,
                    heartbeat=_HEARTBEAT_SECONDS,
                    connection_class=GatheringConnection,
                    client_properties={"connection_name": f"parley-{self._service}-{purpose}"},
                )
            except CONNECTION_EXCEPTIONS as error:
                address = urlsplit(self._url)
                log.warning(
                    "broker.unreachable",
                    setting="AMQP_URL",
                    host=address.hostname,
                    port=address.port,
                    error=type(error).__name__,
                    retry_seconds=pause_seconds,
                )
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _FIRST_CONNECT_PAUSE_SECONDS_MAX)

    async def _declare_topology(self) -> bool:
        """Declare everything and say whether any of it is new. The channel is kept: what was declared on it is
        declared again after a reconnect, also to a broker that has forgotten everything."""
        missing = await self._any_queue_missing()
        self._topology = await self.consuming_channel(prefetch=1)
        await self._topology.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        for queue in QUEUES:
            await declare_queue(self._topology, queue)
        return missing

    async def _any_queue_missing(self) -> bool:
        async with await aio_pika.connect(self._url, timeout=_CONNECT_TIMEOUT_SECONDS) as connection:
            channel = await connection.channel()
            try:
                for queue in QUEUES:
                    await channel.declare_queue(queue.name, passive=True)
            except ChannelNotFoundEntity:
                return True
        return False

    async def _count_forever(self) -> None:
        """How much waits is the first that an operator asks, and not every broker has its own metrics open."""
        channel: AbstractRobustChannel | None = None
        while not self._stopping.is_set():
            with passing_over_losses("queues.not_counted"):
                channel = channel or await self.consuming_channel(prefetch=1)
                await _count(channel)
            with suppress(TimeoutError):
                async with asyncio.timeout(_COUNT_SECONDS):
                    await self._stopping.wait()

    def _reconnected(self, *_: object) -> None:
        log.info("broker.reconnected")
        for callback in self._on_reconnect:
            callback()


async def _count(channel: AbstractRobustChannel) -> None:
    # Not through the robust channel, which would keep each of these declarations to repeat it after a reconnect.
    plain = await channel.get_underlay_channel()
    for queue in QUEUES:
        declared = await plain.queue_declare(queue.name, passive=True, timeout=_CONNECT_TIMEOUT_SECONDS)
        _messages.labels(queue.name).set(declared.message_count or 0)


def is_cancelled() -> bool:
    """Whether this very task is. A dying connection cancels its waiters too, and they are to go on."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def passing_over_losses(event: str, **fields: object) -> Iterator[None]:
    """For the broker's last words and ours: where the connection is gone, that is logged, and the block is over."""
    try:
        yield
    except CONNECTION_EXCEPTIONS as error:
        log.info(event, error=type(error).__name__, **fields)
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        log.info(event, error="CancelledError", **fields)


async def declare_queue(channel: AbstractRobustChannel, queue: Queue) -> AbstractRobustQueue:
    """Declare and bind; the definitions are durable for every kind, only messages differ in how long they last."""
    declared = await channel.declare_queue(queue.name, durable=True, arguments=dict(queue.arguments))
    for routing_key in queue.bindings:
        await declared.bind(EXCHANGE, routing_key)
    return declared
