"""What a process tells of things that are not its own: what waits in queues, what is parked, what is owed."""

from __future__ import annotations

from collections.abc import Sequence

from aio_pika.abc import AbstractIncomingMessage

from shared import metrics
from shared.contracts.message import Message
from shared.ids import new_id
from shared.messaging.broker import Broker
from shared.messaging.owed import OwedPublishes
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.postgres import Database
from tests.support.bus import bus, eventually
from tests.support.result_messages import ended, output_of


async def test_what_waits_in_a_queue_is_told_by_whoever_starts(publisher: Publisher, amqp_url: str) -> None:
    await publisher.publish(*(ended(new_id("req"), output_of("Hi")) for _ in range(3)))
    another = Broker(amqp_url, service="test", settle_seconds=0)
    await another.start()
    try:
        await eventually(lambda: _is('parley_queue_messages{queue="results.endings"} 3.0'))
    finally:
        await another.stop()


async def test_the_connections_to_the_broker_are_told_also_where_nobody_asks_for_readiness(amqp_url: str) -> None:
    broker = Broker(amqp_url, service="test", settle_seconds=0)
    await broker.start()
    assert await _is("parley_broker_connected 1.0")
    await broker.stop()
    assert await _is("parley_broker_connected 0.0")


async def test_parked_messages_are_told_until_they_are_replayed(
    publisher: Publisher, amqp_url: str, kernel_database: Database
) -> None:
    parking = Parking(kernel_database)
    await parking.count(["results.endings", "results.progress"])
    assert await _is('parley_parked_messages{queue="results.endings"} 0.0')
    async with bus(amqp_url) as plain:
        listener = await plain.listen("session.ended")
        await publisher.publish(ended(new_id("req"), output_of("Hi")))
        incoming: AbstractIncomingMessage = (await listener.wait_for(1))[0]
    await parking.insert(incoming, "results.endings", "of_no_use: really")
    await parking.count(["results.endings", "results.progress"])
    assert await _is('parley_parked_messages{queue="results.endings"} 1.0')
    assert await _is('parley_parked_messages{queue="results.progress"} 0.0')
    (parked,) = await parking.select_page()
    await parking.update_replayed(parked.id, parked.times_parked)
    await parking.count([])
    assert "parley_parked_messages{" not in _page()


async def test_owed_publishes_are_told_while_a_sweep_finds_them(publisher: Publisher) -> None:
    rows: list[Message] = [ended(new_id("req"), output_of("Hi"))]

    async def select_owed(limit: int) -> Sequence[Message]:
        return rows[:limit]

    async def mark_published(messages: Sequence[Message]) -> None:
        for message in messages:
            rows.remove(message)

    owed = OwedPublishes("test", publisher, select_owed=select_owed, mark_published=mark_published)
    await owed.sweep()
    assert await _is('parley_owed_publishes_overdue{owed="test"} 1.0')
    await owed.sweep()
    assert await _is('parley_owed_publishes_overdue{owed="test"} 0.0')


def _page() -> str:
    return metrics.exposition()[0].decode()


async def _is(line: str) -> bool:
    return line in _page().splitlines()
