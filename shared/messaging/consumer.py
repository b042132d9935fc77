"""Consuming: deliveries in, one verdict for each: acked, tried again, or parked. Handlers never ack nor retry."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from aio_pika.abc import AbstractIncomingMessage, AbstractRobustChannel, AbstractRobustQueue

from shared import failpoints, tracing
from shared.clock import Pace, SystemClock
from shared.contracts.message import Message
from shared.errors import Transient, Unprocessable
from shared.logs import get_logger
from shared.messaging.broker import Broker, declare_queue, passing_over_losses
from shared.messaging.codec import decode
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.messaging.topology import EXCHANGE, queue_named
from shared.messaging.unsettled import Unsettled
from shared.metrics import counter, histogram
from shared.postgres import DatabaseRefused
from shared.resource import Resource

log = get_logger(__name__)

M = TypeVar("M", bound=Message)
Handler: TypeAlias = Callable[[M], Awaitable[Sequence[Message]]]
BatchHandler: TypeAlias = Callable[[Sequence[M]], Awaitable[Sequence[Message]]]
Gate: TypeAlias = Callable[[], Awaitable[None]]

REDELIVERIES_MAX: Final = 20
_PAUSE_SECONDS_FIRST: Final = 0.1
_PAUSE_SECONDS_MAX: Final = 10.0
_ALONE_SECONDS_MAX: Final = 1.0
"""A batch that takes longer, whatever for, lets the next one start beside it."""
_GATE_PAUSE_SECONDS: Final = 1.0
_CANCEL_SECONDS: Final = 1.0
_LAST_BATCH_SECONDS: Final = 5.0
_TRIES_WHOLE_MAX: Final = 3
_BEST_EFFORT_WAITING_MAX: Final = 20_000

_handled = counter("messages_handled", "Deliveries by queue and verdict.", ("queue", "verdict"))
_redelivered = counter("messages_redelivered", "Deliveries that were made before without a verdict.", ("queue",))
_seconds = histogram("message_batch_seconds", "Time from taking a batch to its acks.", ("queue",))


@dataclass(frozen=True, slots=True)
class _Delivery:
    incoming: AbstractIncomingMessage
    message: Message
    step: tracing.Span


@dataclass(frozen=True, slots=True)
class _Part:
    """Deliveries of one type that are handled together; of a batch it may be all, a half of a half, or one."""

    deliveries: list[_Delivery]
    tries_left: int = _TRIES_WHOLE_MAX

    def singly(self) -> list[_Part]:
        return [_Part([delivery]) for delivery in self.deliveries]

    def to_try_again(self) -> list[_Part]:
        """The same, or its halves: what never succeeds, because it is too much or one of it cannot, ends up alone."""
        if self.tries_left > 1:
            return [_Part(self.deliveries, self.tries_left - 1)]
        middle = (len(self.deliveries) + 1) // 2
        return [_Part(half, tries_left=1) for half in (self.deliveries[:middle], self.deliveries[middle:]) if half]


def each(handler: Handler[Any]) -> BatchHandler[Any]:
    """Lift a handler of one message: a batch runs side by side, and one bad message is found by the re-run."""

    async def handle_all(messages: Sequence[Any]) -> Sequence[Message]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_unwrapped(handler, message)) for message in messages]
        outcomes = [task.result() for task in tasks]
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return [message for outcome in outcomes if not isinstance(outcome, Exception) for message in outcome]

    return handle_all


async def _unwrapped(handler: Handler[Any], message: Message) -> Sequence[Message] | Exception:
    try:
        return await handler(message)
    except Exception as error:
        return error


class Consumer(Resource):
    """Reads one queue in batches of what has arrived, each of one message class, in the order of arrival.

    `interval_seconds` is the least time between the beginnings of two batches, where nobody waits for what is handled:
    what comes meanwhile shares a statement. A batch that is full when its turn comes does not wait.
    """

    def __init__(
        self,
        broker: Broker,
        publisher: Publisher,
        parking: Parking,
        queue: str,
        handlers: Mapping[type[Message], BatchHandler[Any]],
        *,
        batch_max: int = 100,
        interval_seconds: float = 0.0,
        gate: Gate | None = None,
    ) -> None:
        self._broker = broker
        self._publisher = publisher
        self._parking = parking
        self._queue = queue_named(queue)
        self._handlers = {message_class.type: handler for message_class, handler in handlers.items()}
        self._classes = {message_class.type: message_class for message_class in handlers}
        self._batch_max = batch_max
        self._pace = Pace(interval_seconds, SystemClock())
        self._gate = gate
        # Prefetch bounds what waits here, but for auto-acked queues, whose oldest deliveries are dropped.
        self._arrived: deque[AbstractIncomingMessage] = deque(
            maxlen=_BEST_EFFORT_WAITING_MAX if self._best_effort else None
        )
        self._unsettled = Unsettled()
        self._some_arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        # One batch at a time: what arrives meanwhile is the next one, so the busier we are, the more share a statement.
        # One that is slow or stands still gives the slot back; then the prefetch bounds how many there are.
        self._slot = asyncio.Semaphore(1)
        self._batches: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._channel: AbstractRobustChannel | None = None
        self._consumed: AbstractRobustQueue | None = None
        self._consumer_tag = ""
        for verdict in ("acked", "paused", "parked", "dropped"):  # a rate needs the zero before the first
            _handled.labels(queue, verdict)

    @property
    def queue(self) -> str:
        return self._queue.name

    async def start(self) -> None:
        self._channel = await self._broker.consuming_channel(prefetch=3 * self._batch_max)
        self._consumed = await declare_queue(self._channel, self._queue)
        self._loop = asyncio.create_task(self._take_batches())
        self._consumer_tag = await self._consumed.consume(self._arrive, no_ack=self._best_effort)

    def drain(self) -> None:
        self._stopping.set()

    async def stop(self) -> None:
        """Stop the flow, let batches in hand finish, give back the rest."""
        self._stopping.set()
        if self._loop is None or self._consumed is None or self._channel is None:
            return
        await self._cancel(self._consumed)
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        if self._batches:
            await asyncio.wait(self._batches, timeout=_LAST_BATCH_SECONDS)
        # What is cut here is delivered again, as after a crash.
        for batch in self._batches:
            batch.cancel()
        await asyncio.gather(*self._batches, return_exceptions=True)
        for incoming in self._arrived:
            await self._give_back(incoming)
        self._arrived.clear()

    async def _cancel(self, consumed: AbstractRobustQueue) -> None:
        with passing_over_losses("consumer.cancel_lost", queue=self._queue.name):
            # The library's own timeout does not cover its wait for a lost connection.
            async with asyncio.timeout(_CANCEL_SECONDS):
                await consumed.cancel(self._consumer_tag)

    @property
    def _best_effort(self) -> bool:
        return self._queue.kind == "best_effort"

    async def _arrive(self, incoming: AbstractIncomingMessage) -> None:
        if incoming.redelivered:
            _redelivered.labels(self._queue.name).inc()
        self._arrived.append(incoming)
        if not self._best_effort:
            self._unsettled.add(incoming)
        self._some_arrived.set()

    async def _take_batches(self) -> None:
        while True:
            await self._some_arrived.wait()
            await self._slot.acquire()
            await self._pace.wait(at_once=len(self._arrived) >= self._batch_max)
            if self._gate is not None:
                await self._pass(self._gate)
            taken = [self._arrived.popleft() for _ in range(min(self._batch_max, len(self._arrived)))]
            if not self._arrived:
                self._some_arrived.clear()
            batch = asyncio.create_task(self._run_batch(taken))
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)

    async def _pass(self, gate: Gate) -> None:
        """Return once the gate lets through. One that fails is asked again: were this loop to end, the process would
        look ready, keep its deliveries, and handle none of them."""
        while True:
            try:
                return await gate()
            except Exception as error:
                log.error("consumer.gate_failed", queue=self._queue.name, exc_info=error)
            await asyncio.sleep(_GATE_PAUSE_SECONDS)

    async def _run_batch(self, taken: list[AbstractIncomingMessage]) -> None:
        with contextlib.ExitStack() as slot, _seconds.labels(self._queue.name).time():
            slot.callback(self._slot.release)
            late = asyncio.get_running_loop().call_later(_ALONE_SECONDS_MAX, slot.close)
            slot.callback(late.cancel)
            try:
                await self._handle(await self._decode(taken))
            except _Stopping:
                log.info("consumer.gave_back", queue=self._queue.name)
                for incoming in taken:
                    await self._give_back(incoming)

    async def _decode(self, taken: list[AbstractIncomingMessage]) -> deque[_Part]:
        """The batch's messages, a part for each type; what cannot be one is parked on the spot."""
        by_type: dict[str, list[_Delivery]] = {}
        for incoming in taken:
            try:
                _check_redeliveries(incoming)
                message = decode(incoming, self._classes)
            except Unprocessable as error:
                await self._park(incoming, error.reason)
            else:
                step = tracing.consuming(message, incoming.headers, EXCHANGE, self._queue.name, len(taken))
                delivery = _Delivery(incoming, tracing.under(step, message), step)
                by_type.setdefault(message.type, []).append(delivery)
        return deque(_Part(deliveries) for deliveries in by_type.values())

    async def _handle(self, parts: deque[_Part]) -> None:
        """Bring every part to its verdict. They take turns, one try between two pauses: while the world is away no
        more is tried for there being many, and once it is back nothing waits for what still fails."""
        pause_seconds = _PAUSE_SECONDS_FIRST
        while parts:
            part = parts.popleft()
            try:
                await self._handle_and_publish(part.deliveries)
            except Transient as error:
                if self._best_effort:
                    _handled.labels(self._queue.name, "dropped").inc(len(part.deliveries))
                    continue
                parts.extend(part.to_try_again())
                pause_seconds = await self._pause(error, pause_seconds, len(part.deliveries))
            except Exception as error:
                if len(part.deliveries) > 1:
                    parts.extendleft(reversed(part.singly()))
                else:
                    await self._park(part.deliveries[0].incoming, _reason(error), error)
                    part.deliveries[0].step.fail("parked")
                    part.deliveries[0].step.end()
            else:
                pause_seconds = _PAUSE_SECONDS_FIRST
                failpoints.reach(f"consume.{self._queue.name}.before_ack")
                await self._ack([delivery.incoming for delivery in part.deliveries])
                for delivery in part.deliveries:
                    delivery.step.end()

    async def _handle_and_publish(self, deliveries: list[_Delivery]) -> None:
        """Before the ack, so that a crash repeats and never loses."""
        handler = self._handlers[deliveries[0].message.type]
        received = [delivery.message for delivery in deliveries]
        messages = tracing.continued(await handler(received), received)
        if messages:
            await self._publisher.publish(*messages)

    async def _pause(self, error: Transient, seconds: float, deliveries: int) -> float:
        """Wait, and say for how long to wait the next time. Nothing is acked or requeued meanwhile: an outage costs no
        delivery count, and the prefetch bounds what is held."""
        log.warning("consumer.paused", queue=self._queue.name, error=str(error), seconds=seconds)
        _handled.labels(self._queue.name, "paused").inc(deliveries)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.75, 1.25)):
                await self._stopping.wait()
            raise _Stopping
        return min(seconds * 2, _PAUSE_SECONDS_MAX)

    async def _park(self, incoming: AbstractIncomingMessage, reason: str, error: Exception | None = None) -> None:
        log.error("message.parked", queue=self._queue.name, reason=reason, exc_info=error)
        if self._best_effort:
            _handled.labels(self._queue.name, "dropped").inc()
            return
        await self._insert_parked(incoming, reason)
        await self._ack([incoming], verdict="parked")

    async def _insert_parked(self, incoming: AbstractIncomingMessage, reason: str) -> None:
        pause_seconds = _PAUSE_SECONDS_FIRST
        while True:
            try:
                return await self._parking.insert(incoming, self._queue.name, reason)
            except Transient as error:
                pause_seconds = await self._pause(error, pause_seconds, 1)
            except DatabaseRefused as error:
                # The row cannot be wrong, so the database is: given up here, the delivery would never have a verdict.
                away = Transient(f"a message cannot be parked: {error}")
                pause_seconds = await self._pause(away, pause_seconds, 1)

    async def _ack(self, handled: Sequence[AbstractIncomingMessage], *, verdict: str = "acked") -> None:
        _handled.labels(self._queue.name, verdict).inc(len(handled))
        if self._best_effort:
            return
        for incoming, stands_for_older in self._unsettled.take(handled):
            await self._settle(partial(incoming.ack, multiple=stands_for_older))

    async def _give_back(self, incoming: AbstractIncomingMessage) -> None:
        if incoming in self._unsettled:
            for one, _ in self._unsettled.take([incoming]):
                await self._settle(partial(one.nack, requeue=True))

    async def _settle(self, verdict: Callable[[], Awaitable[None]]) -> None:
        """Tell the broker; where the channel is gone, it delivers again and the handler finds its work done."""
        with passing_over_losses("message.verdict_lost", queue=self._queue.name):
            await verdict()


class _Stopping(Exception):
    """The process stops: what was in hand is given back."""


def _check_redeliveries(incoming: AbstractIncomingMessage) -> None:
    count = incoming.headers.get("x-delivery-count", 0)
    if isinstance(count, int) and count >= REDELIVERIES_MAX:
        raise Unprocessable(f"redelivered_too_often: {count} deliveries ended without a verdict")


def _reason(error: Exception) -> str:
    if isinstance(error, Unprocessable):
        return error.reason
    if isinstance(error, DatabaseRefused):
        return f"database_refused: sqlstate {error.sqlstate} constraint {error.constraint_name}"
    return f"unexpected_error: {type(error).__name__}"
