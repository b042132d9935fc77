"""Publishing: confirmed for what is owed, fire-and-forget for what is best effort."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypeAlias

import aio_pika
from aio_pika.abc import AbstractRobustChannel
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelInvalidStateError, ChannelPreconditionFailed

from shared import failpoints, tracing
from shared.clock import Pace, SystemClock
from shared.contracts.message import Message
from shared.errors import Transient, Unprocessable
from shared.logs import get_logger
from shared.messaging.broker import Broker, is_cancelled
from shared.messaging.codec import Encoded, encode
from shared.messaging.topology import EXCHANGE
from shared.metrics import counter
from shared.resource import Resource

log = get_logger(__name__)

Published: TypeAlias = Literal["confirmed", "unconfirmed", "refused"]
"""`unconfirmed` may be tried again; `refused` is larger than any message that the broker takes."""

_CONFIRM_TIMEOUT_SECONDS: Final = 5.0
_BEST_EFFORT_BUFFER_MAX: Final = 10_000
_PACKET_MAX: Final = 100
"""Best-effort messages that are written together; the next ones wait until the socket has taken them."""
_UNCONFIRMED_MAX: Final = 1_000
"""So many may be written and not confirmed, with those that nobody waits for any more, before each has to wait for the
socket to take it: while the broker reads nothing, what is tried again would be kept once for each try."""

_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
"""With this the broker closes the channel, and every publish that waits there for its confirm hears it."""

_Maker: TypeAlias = tuple[str, Callable[[], Message | None]]
_Ready: TypeAlias = tuple[str, Encoded]
"""Each with the message's type, which is its routing key."""

_published = counter("messages_published", "Messages by type and outcome.", ("type", "outcome"))


class Publisher(Resource):
    """Sends messages through one confirming and one plain channel.

    `interval_seconds` is the least time between two packets of best-effort messages: those that follow one closely go
    together.
    """

    def __init__(self, broker: Broker, *, interval_seconds: float = 0.0) -> None:
        self._broker = broker
        self._pace = Pace(interval_seconds, SystemClock())
        self._confirmed: AbstractRobustChannel | None = None
        self._plain: AbstractRobustChannel | None = None
        self._best_effort: asyncio.Queue[_Maker] = asyncio.Queue(_BEST_EFFORT_BUFFER_MAX)
        self._sender: asyncio.Task[None] | None = None
        self._body_bytes_max: int | None = None
        """As the broker said when it last refused one. Sending another would close the channel for all others again."""

    async def start(self) -> None:
        # Only a restart changes the broker's limit.
        self._broker.on_reconnect(self._forget_limit)
        confirming = await self._broker.publishing_channel(confirms=True)
        plain = await self._broker.publishing_channel(confirms=False)
        await confirming.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        self._confirmed, self._plain = confirming, plain
        self._sender = asyncio.create_task(self._send_best_effort())

    async def stop(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def publish(self, *messages: Message) -> None:
        """Return when the broker has confirmed every one of them; raise Transient where it has not, Unprocessable
        where it never will."""
        outcomes = await self.publish_each(messages)
        if "unconfirmed" in outcomes:
            raise Transient("the broker did not confirm every message")
        if "refused" in outcomes:
            message = messages[outcomes.index("refused")]
            raise Unprocessable(f"message_too_large: {message.type} is larger than the broker's max_message_size")

    async def publish_each(self, messages: Sequence[Message]) -> list[Published]:
        """What became of each of them, in their order. All are under way at the same time."""
        if len(messages) == 1:
            return [await self._publish_confirmed(messages[0])]
        return await asyncio.gather(*(self._publish_confirmed(message) for message in messages))

    def send(self, message: Message) -> None:
        """Publish it some time soon, or drop it where the broker is away or slower than we are."""
        self.send_made(message.type, lambda: message)

    def send_made(self, message_type: str, make: Callable[[], Message | None]) -> bool:
        """Publish some time soon what `make` gives when that time has come, None where it is of no use any more. False
        where the broker is away or slower than we are: it will not be asked."""
        try:
            self._best_effort.put_nowait((message_type, make))
        except asyncio.QueueFull:
            _published.labels(message_type, "dropped").inc()
            return False
        return True

    async def _publish_confirmed(self, message: Message) -> Published:
        failpoints.reach(f"publish.{message.type}.before")
        with tracing.publishing(message, EXCHANGE) as step:
            outcome = await self._outcome(message)
            if outcome != "confirmed":
                step.fail(outcome)
        _published.labels(message.type, outcome).inc()
        if outcome == "confirmed":
            failpoints.reach(f"publish.{message.type}.after")
        return outcome

    async def _outcome(self, message: Message) -> Published:
        assert self._confirmed is not None, "the publisher has not been started"
        encoded = encode(message)
        if self._is_too_large(encoded):
            return self._refused(message, encoded)
        tracing.inject(encoded.headers)
        try:
            # The library's own timeout does not cover its wait for a lost connection.
            async with asyncio.timeout(_CONFIRM_TIMEOUT_SECONDS):
                await _write(self._confirmed, encoded, message.type, mandatory=bool(message.queues))
        except CONNECTION_EXCEPTIONS as error:
            self._learn_limit(error)
            if self._is_too_large(encoded):
                return self._refused(message, encoded)
            log.warning("message.unconfirmed", type=message.type, ce_id=message.id, error=type(error).__name__)
            return "unconfirmed"
        except asyncio.CancelledError:
            # A dying connection cancels its waiters; only a cancellation of this very task goes on.
            if is_cancelled():
                raise
            return "unconfirmed"
        return "confirmed"

    def _refused(self, message: Message, encoded: Encoded) -> Published:
        log.error(
            "message.too_large",
            type=message.type,
            ce_id=message.id,
            body_bytes=len(encoded.body),
            max_message_size=self._body_bytes_max,
        )
        return "refused"

    def _is_too_large(self, encoded: Encoded) -> bool:
        return self._body_bytes_max is not None and len(encoded.body) > self._body_bytes_max

    def _learn_limit(self, error: BaseException) -> None:
        said = _TOO_LARGE.search(str(error)) if isinstance(error, ChannelPreconditionFailed) else None
        if said:
            self._body_bytes_max = int(said[1])

    def _forget_limit(self) -> None:
        self._body_bytes_max = None

    async def _send_best_effort(self) -> None:
        while True:
            makers = [await self._best_effort.get()]
            await self._pace.wait(at_once=self._best_effort.qsize() >= _PACKET_MAX)
            while len(makers) < _PACKET_MAX and not self._best_effort.empty():
                makers.append(self._best_effort.get_nowait())
            try:
                await self._send_packet([ready for maker in makers if (ready := _made(*maker)) is not None])
            except Exception as error:
                # This loop sends for all: it must outlive whatever it trips over.
                log.error("messages.failed", count=len(makers), exc_info=error)

    async def _send_packet(self, messages: Sequence[_Ready]) -> None:
        """Only the last one waits for the socket: together they are one write, not one each."""
        assert self._plain is not None
        sent = 0
        try:
            async with asyncio.timeout(_CONFIRM_TIMEOUT_SECONDS):
                for message_type, encoded in messages:
                    is_last = sent == len(messages) - 1
                    await _write(self._plain, encoded, message_type, mandatory=False, wait=is_last)
                    sent += 1
        except CONNECTION_EXCEPTIONS as error:
            log.debug("messages.dropped", count=len(messages) - sent, error=type(error).__name__)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
        for number, (message_type, _) in enumerate(messages):
            _published.labels(message_type, "sent" if number < sent else "dropped").inc()


def _made(message_type: str, make: Callable[[], Message | None]) -> _Ready | None:
    """One that cannot be made takes nobody else's hint along."""
    try:
        message = make()
        return None if message is None else (message_type, encode(message))
    except Exception as error:
        _published.labels(message_type, "dropped").inc()
        log.error("message.not_made", type=message_type, exc_info=error)
        return None


async def _write(
    channel: AbstractRobustChannel, encoded: Encoded, routing_key: str, *, mandatory: bool, wait: bool = False
) -> None:
    """Return when it is confirmed, or where the channel does not confirm, with `wait` when the socket has taken it.
    Past aio-pika's own `publish`, which lets each message wait until the socket has taken the one before."""
    if channel.is_closed:
        raise ChannelInvalidStateError
    underlay: Any = await channel.get_underlay_channel()  # of this, its abstract class does not tell everything
    await underlay.basic_publish(
        encoded.body,
        exchange=EXCHANGE,
        routing_key=routing_key,
        properties=encoded.properties,
        mandatory=mandatory,
        wait=wait or len(underlay.confirmations) >= _UNCONFIRMED_MAX,
    )
