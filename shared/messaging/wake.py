"""A replica's own wake queue: hints for those who wait in this process, dropped when nobody listens."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustChannel, AbstractRobustQueue

from shared.contracts.message import Message
from shared.errors import Unprocessable
from shared.logs import get_logger
from shared.messaging.broker import Broker
from shared.messaging.codec import decode
from shared.messaging.topology import EXCHANGE
from shared.resource import Resource

log = get_logger(__name__)

_LENGTH_MAX: Final = 10_000
_EXPIRES_MILLISECONDS: Final = 60_000


class WakeQueue(Resource):
    """Calls a handler for each hint. After a reconnect, when hints may have been missed, `on_reconnect` is called.

    The queue is of a random name and expires when unused. It is not declared exclusive: after a half-open
    connection the broker would refuse its own owner until the old connection's heartbeat has run out.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        handlers: Mapping[type[Message], Callable[[Any], None]],
        *,
        on_reconnect: Callable[[], None],
    ) -> None:
        self._broker = broker
        self._name = f"{name}.{uuid.uuid4().hex}"
        self._handlers = {message_class.type: handler for message_class, handler in handlers.items()}
        self._classes = {message_class.type: message_class for message_class in handlers}
        self._on_reconnect = on_reconnect
        self._channel: AbstractRobustChannel | None = None
        self._queue: AbstractRobustQueue | None = None

    async def start(self) -> None:
        self._channel = await self._broker.consuming_channel(prefetch=0)
        self._queue = await self._channel.declare_queue(
            self._name,
            durable=True,
            arguments={
                "x-queue-type": "classic",
                "x-max-length": _LENGTH_MAX,
                "x-overflow": "drop-head",
                "x-expires": _EXPIRES_MILLISECONDS,
            },
        )
        for event_type in self._classes:
            await self._queue.bind(EXCHANGE, event_type)
        await self._queue.consume(self._wake, no_ack=True)
        self._broker.on_reconnect(self._on_reconnect)

    async def _wake(self, incoming: AbstractIncomingMessage) -> None:
        try:
            message = decode(incoming, self._classes)
        except Unprocessable as error:
            log.warning("wake.unreadable", reason=error.reason)
            return
        self._handlers[message.type](message)
