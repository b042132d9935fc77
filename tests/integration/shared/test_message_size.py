"""What happens to messages that are larger than the broker's max_message_size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shared.contracts.billing import Eligibility, EligibilityChanged
from shared.contracts.gateway import RequestsMoved
from shared.contracts.message import Message
from shared.errors import Unprocessable
from shared.messaging.broker import Broker
from shared.messaging.consumer import Consumer
from shared.messaging.owed import OwedPublishes
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.migrate import apply, read_migrations
from shared.postgres import Database
from tests.support.bus import Bus, bus, eventually
from tests.support.servers import Databases, Vhosts

NOW = datetime(2026, 11, 1, tzinfo=UTC)
QUEUE = "gateway.eligibility"
LARGE = "x" * 100_000


def fact(sequence: int, reason: str = "active") -> EligibilityChanged:
    eligibility = Eligibility(decision="ALLOW", reasons=(reason,))
    return EligibilityChanged(account_id="acct_1", sequence=sequence, eligibility=eligibility, decided_at=NOW)


@pytest.fixture
def amqp_url(narrow_vhosts: Vhosts) -> str:
    return narrow_vhosts.url(narrow_vhosts.take())


@pytest.fixture
async def beside(amqp_url: str, publisher: Publisher) -> AsyncIterator[Bus]:
    async with bus(amqp_url) as beside:
        yield beside


async def confirmed(publisher: Publisher, message: Message) -> None:
    """The refusal closes the channel, at times the connection: others are unconfirmed until it is back."""

    async def is_confirmed() -> bool:
        return await publisher.publish_each([message]) == ["confirmed"]

    await eventually(is_confirmed)


async def test_a_message_that_is_too_large_is_refused_and_the_others_go_on(publisher: Publisher) -> None:
    outcomes = await publisher.publish_each([fact(1), fact(2, LARGE), fact(3)])
    assert outcomes[1] == "refused"
    assert "refused" not in (outcomes[0], outcomes[2])
    await confirmed(publisher, fact(3))
    # The second one is not sent, so those beside it do not lose their channel again.
    assert await publisher.publish_each([fact(4), fact(5, LARGE), fact(6)]) == ["confirmed", "refused", "confirmed"]
    with pytest.raises(Unprocessable, match="message_too_large"):
        await publisher.publish(fact(7, LARGE))


async def test_what_is_owed_instead_of_a_refused_message_is_paid(publisher: Publisher, beside: Bus) -> None:
    rows: dict[str, Message] = {message.id: message for message in (fact(1), fact(2, LARGE), fact(3, LARGE))}
    listener = await beside.listen("eligibility.changed")

    async def select_owed(limit: int) -> Sequence[Message]:
        return list(rows.values())

    async def mark_published(messages: Sequence[Message]) -> None:
        for message in messages:
            rows.pop(message.id, None)

    async def replace_refused(messages: Sequence[Message]) -> Sequence[Message]:
        smaller = [fact(message.sequence, "smaller") for message in messages if isinstance(message, EligibilityChanged)]
        rows.update((message.id, message) for message in smaller)
        return smaller

    owed = OwedPublishes(
        "test",
        publisher,
        select_owed=select_owed,
        mark_published=mark_published,
        replace_refused=replace_refused,
        sweep_seconds=0.2,
    )
    await owed.start()
    owed.pay(list(rows.values()))

    async def is_paid() -> bool:
        return not rows

    await eventually(is_paid)
    await owed.stop()
    heard = [EligibilityChanged.model_validate_json(incoming.body) for incoming in await listener.wait_for(3)]
    assert {(message.sequence, message.eligibility.reasons[0]) for message in heard} == {
        (1, "active"),
        (2, "smaller"),
        (3, "smaller"),
    }


async def test_a_delivery_whose_answer_is_too_large_is_parked(
    broker: Broker, publisher: Publisher, beside: Bus, databases: Databases
) -> None:
    database = Database(await databases.empty(), service="test")
    await database.start()
    await apply(database, read_migrations("test", Path("no/such/folder")))
    parking = Parking(database)
    handled: list[int] = []

    async def handle(messages: Sequence[EligibilityChanged]) -> Sequence[Message]:
        handled.extend(message.sequence for message in messages)
        # An answer to nobody in particular: only its size matters.
        return [RequestsMoved(request_ids=(LARGE,)) for message in messages if message.sequence == 2]

    async def is_parked() -> bool:
        return {1, 3} <= set(handled) and len(await parking.select_page()) == 1

    consumer = Consumer(broker, publisher, parking, QUEUE, {EligibilityChanged: handle})
    await consumer.start()
    for number in (1, 2, 3):
        await beside.send(fact(number))
    await eventually(is_parked)
    consumer.drain()
    await consumer.stop()
    [parked] = await parking.select_page()
    assert parked.ce_id == fact(2).id
    assert parked.reason.startswith("message_too_large")
    assert await beside.count(QUEUE) == 0
    await database.stop()
