"""Publishes owed by a row: paid soon after the commit, marked a little later, and swept up where either was missed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from shared import failpoints
from shared.contracts.message import Message
from shared.errors import ParleyError
from shared.logs import get_logger
from shared.messaging.publisher import Publisher
from shared.metrics import counter, gauge
from shared.resource import Resource

log = get_logger(__name__)

_BATCH_MAX: Final = 200
_BUFFER_MAX: Final = 10_000
_MARK_SECONDS: Final = 0.2
"""For so long confirmed messages gather before their rows are marked: nobody waits for the mark, and each is a commit.
Far less than the age at which a sweep, this process's or another's, takes a row for unpaid."""

_overdue = gauge("owed_publishes_overdue", "Rows whose publish the last sweep found unpaid for seconds.", ("owed",))
_paid = counter("owed_publishes_paid", "Owed publishes paid, by who paid.", ("owed", "payer"))


class OwedPublishes(Resource):
    """A publish is owed until its row is marked.

    `select_owed(limit)` gives the messages of unmarked rows that are older than a few seconds; `mark_published`
    marks the rows of confirmed messages, all of a fifth of a second together. A crash between publish and mark repeats
    the messages under the same ids.
    `replace_refused` changes the rows of messages that are too large for the broker, and gives what they owe instead;
    without it, and where it finds nothing smaller, they stay owed and each sweep says so.
    """

    def __init__(
        self,
        name: str,
        publisher: Publisher,
        *,
        select_owed: Callable[[int], Awaitable[Sequence[Message]]],
        mark_published: Callable[[Sequence[Message]], Awaitable[None]],
        replace_refused: Callable[[Sequence[Message]], Awaitable[Sequence[Message]]] | None = None,
        sweep_seconds: float = 5.0,
    ) -> None:
        self._name = name
        self._publisher = publisher
        self._select_owed = select_owed
        self._mark_published = mark_published
        self._replace_refused = replace_refused
        self._sweep_seconds = sweep_seconds
        self._fresh: asyncio.Queue[Message] = asyncio.Queue(_BUFFER_MAX)
        self._under_way: set[str] = set()
        self._unmarked: dict[str, Message] = {}
        """Confirmed, by id; their rows do not say so yet."""
        self._some_unmarked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._pay_fresh()),
            asyncio.create_task(self._mark_forever()),
            asyncio.create_task(self._sweep_forever()),
        ]

    async def stop(self) -> None:
        """Pay and mark what is at hand if that is quick; the rest stays owed by its rows."""
        if self._tasks:
            self._tasks.pop().cancel()
        try:
            async with asyncio.timeout(2):
                await self._fresh.join()
                await self._mark_confirmed()
        except TimeoutError:
            log.info("owed.left_to_sweep", owed=self._name, count=self._fresh.qsize() + len(self._unmarked))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pay(self, messages: Iterable[Message]) -> None:
        """Publish these soon. Never blocks: where the buffer is full the sweep finds their rows."""
        for message in messages:
            try:
                self._fresh.put_nowait(message)
            except asyncio.QueueFull:
                return

    async def sweep(self) -> int:
        """Pay the rows that nobody has paid; returns how many were found."""
        owed = [
            message
            for message in await self._select_owed(_BATCH_MAX)
            if message.id not in self._under_way and message.id not in self._unmarked
        ]
        _overdue.labels(self._name).set(len(owed))
        if owed:
            log.info("owed.swept", owed=self._name, count=len(owed))
            await self._publish(owed, self._mark_swept)
        return len(owed)

    async def _pay_fresh(self) -> None:
        while True:
            batch = [await self._fresh.get()]
            while len(batch) < _BATCH_MAX and not self._fresh.empty():
                batch.append(self._fresh.get_nowait())
            try:
                await self._publish(batch, self._mark_soon)
            except ParleyError as error:
                log.warning("owed.unpaid", owed=self._name, count=len(batch), error=str(error))
            except Exception as error:
                log.error("owed.failed", owed=self._name, count=len(batch), exc_info=error)
            finally:
                for _ in batch:
                    self._fresh.task_done()

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._sweep_seconds)
            try:
                while await self.sweep() == _BATCH_MAX:
                    continue
            except ParleyError as error:
                log.warning("owed.sweep_failed", owed=self._name, error=str(error))
            except Exception as error:
                # This loop is what heals: it must outlive whatever it trips over.
                log.error("owed.failed", owed=self._name, exc_info=error)

    async def _mark_forever(self) -> None:
        while True:
            await self._some_unmarked.wait()
            await asyncio.sleep(_MARK_SECONDS)
            await self._mark_confirmed()

    async def _publish(self, batch: Sequence[Message], mark: Callable[[Sequence[Message]], Awaitable[None]]) -> None:
        self._under_way.update(message.id for message in batch)
        try:
            outcomes = await self._publisher.publish_each(batch)
            paid = [message for message, outcome in zip(batch, outcomes, strict=True) if outcome == "confirmed"]
            if paid:
                await mark(paid)
            refused = [message for message, outcome in zip(batch, outcomes, strict=True) if outcome == "refused"]
            if refused and self._replace_refused is not None:
                self.pay(await self._replace_refused(refused))
        finally:
            self._under_way.difference_update(message.id for message in batch)

    async def _mark_soon(self, paid: Sequence[Message]) -> None:
        self._unmarked.update((message.id, message) for message in paid)
        self._some_unmarked.set()

    async def _mark_swept(self, paid: Sequence[Message]) -> None:
        """Before the next sweep, which would find them again."""
        await self._mark(paid, payer="sweep")

    async def _mark_confirmed(self) -> None:
        """What cannot be marked is left to the sweep, which publishes it again."""
        self._some_unmarked.clear()
        marking = list(self._unmarked.values())
        try:
            if marking:
                await self._mark(marking, payer="fresh")
        except ParleyError as error:
            log.warning("owed.unmarked", owed=self._name, count=len(marking), error=str(error))
        except Exception as error:
            # The loop that calls this must outlive whatever it trips over.
            log.error("owed.failed", owed=self._name, exc_info=error)
        finally:
            for message in marking:
                self._unmarked.pop(message.id, None)

    async def _mark(self, paid: Sequence[Message], *, payer: str) -> None:
        failpoints.reach(f"owed.{self._name}.before_mark")
        await self._mark_published(paid)
        _paid.labels(self._name, payer).inc(len(paid))
