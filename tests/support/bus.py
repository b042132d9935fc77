"""The bus as a test sees it: messages sent raw or well formed, queues counted and drained."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from shared.contracts.message import Message
from shared.messaging.codec import encode
from shared.messaging.topology import EXCHANGE
from tests.support.guard import GUARD_SECONDS

_PAUSE_SECONDS_MIN, _PAUSE_SECONDS_MAX = 0.02, 0.5


@dataclass
class Bus:
    """A plain connection beside the ones under test."""

    channel: AbstractChannel

    async def send(self, message: Message) -> None:
        exchange = await self.channel.get_exchange(EXCHANGE)
        encoded = encode(message)
        properties = encoded.properties
        sent = aio_pika.Message(
            encoded.body,
            headers=encoded.headers,
            content_type=properties.content_type,
            type=properties.message_type,
            delivery_mode=properties.delivery_mode,
        )
        await exchange.publish(sent, routing_key=message.type)

    async def send_raw(
        self, routing_key: str, body: bytes, headers: Mapping[str, Any], content_type: str | None = "application/json"
    ) -> None:
        """Anything at all, through the exchange."""
        exchange = await self.channel.get_exchange(EXCHANGE)
        message = aio_pika.Message(body, headers=dict(headers), content_type=content_type)
        await exchange.publish(message, routing_key=routing_key)

    async def count(self, queue: str) -> int:
        """Messages ready in `queue`; those held by a consumer are not counted."""
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def listen(self, *routing_keys: str) -> Listener:
        """What is published under these keys from now on."""
        queue = await self.channel.declare_queue(exclusive=True)
        for routing_key in routing_keys:
            await queue.bind(EXCHANGE, routing_key)
        listener = Listener()
        await queue.consume(listener.hear, no_ack=True)
        return listener


class Listener:
    """Keeps what it heard; `wait_for` returns once enough of it is here."""

    def __init__(self) -> None:
        self.heard: list[AbstractIncomingMessage] = []
        self._changed = asyncio.Condition()

    async def hear(self, incoming: AbstractIncomingMessage) -> None:
        self.heard.append(incoming)
        async with self._changed:
            self._changed.notify_all()

    async def wait_for(self, count: int, *, seconds: float = GUARD_SECONDS) -> list[AbstractIncomingMessage]:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.heard) >= count)
        return self.heard

    async def wait_about(self, subject: str) -> AbstractIncomingMessage:
        """The first message about this request or account."""

        def about() -> list[AbstractIncomingMessage]:
            return [incoming for incoming in self.heard if incoming.headers["ce-subject"] == subject]

        async with asyncio.timeout(GUARD_SECONDS), self._changed:
            return (await self._changed.wait_for(about))[0]


@asynccontextmanager
async def bus(amqp_url: str) -> AsyncIterator[Bus]:
    async with await aio_pika.connect(amqp_url) as connection:
        yield Bus(await connection.channel())


async def eventually(condition: Callable[[], Awaitable[bool]], *, seconds: float = GUARD_SECONDS) -> None:
    """Return once `condition` holds: for what can only be asked, not awaited. The longer it takes, the less often it is
    asked, at most a tenth too late: whoever is asked needs the processor that the answer waits for."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(min(max(_PAUSE_SECONDS_MIN, (loop.time() - began) / 10), _PAUSE_SECONDS_MAX))
