"""Consumer, publisher, parking, owed publishes and wake queue against a real RabbitMQ and a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Sized
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.contracts.billing import Eligibility, EligibilityChanged
from shared.contracts.content import Failure
from shared.contracts.gateway import RequestsMoved, SessionAbandoned
from shared.contracts.message import Message
from shared.errors import Transient, Unprocessable
from shared.messaging import publisher as publishing
from shared.messaging.broker import Broker
from shared.messaging.consumer import BatchHandler, Consumer, each
from shared.messaging.owed import OwedPublishes
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.messaging.replay import replay
from shared.messaging.transport import GatheringWriter
from shared.messaging.wake import WakeQueue
from shared.postgres import Database, DatabaseRefused
from tests.support.bus import Bus, bus, eventually
from tests.support.counted import counted, handling
from tests.support.guard import GUARD_SECONDS

NOW = datetime(2026, 11, 1, tzinfo=UTC)
QUEUE = "gateway.eligibility"


def fact(sequence: int, account: str = "acct_1") -> EligibilityChanged:
    eligibility = Eligibility(decision="ALLOW", reasons=("active",))
    return EligibilityChanged(account_id=account, sequence=sequence, eligibility=eligibility, decided_at=NOW)


class Handled:
    """A handler that keeps what it got and does what it is told to."""

    def __init__(self) -> None:
        self.messages: list[EligibilityChanged] = []
        self.begun: list[int] = []
        self.batches: list[int] = []
        self.answer: Callable[[EligibilityChanged], Sequence[Message]] = lambda _: []
        self._changed = asyncio.Condition()

    async def batch(self, messages: Sequence[EligibilityChanged]) -> Sequence[Message]:
        self.batches.append(len(messages))
        self.begun += [message.sequence for message in messages]
        returned = [answer for message in messages for answer in self.answer(message)]
        await self._keep(messages)
        return returned

    async def one(self, message: EligibilityChanged) -> Sequence[Message]:
        self.begun.append(message.sequence)
        returned = self.answer(message)
        await self._keep([message])
        return returned

    async def _keep(self, messages: Sequence[EligibilityChanged]) -> None:
        self.messages.extend(messages)
        async with self._changed:
            self._changed.notify_all()

    async def wait_for(self, count: int) -> list[int]:
        async with asyncio.timeout(GUARD_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(self.messages) >= count)
        return [message.sequence for message in self.messages]


class World:
    """Broker, publisher, parking and a plain connection beside them."""

    def __init__(self, broker: Broker, publisher: Publisher, database: Database, plain: Bus) -> None:
        self.broker = broker
        self.publisher = publisher
        self.database = database
        self.parking = Parking(database)
        self.bus = plain

    @asynccontextmanager
    async def consuming(
        self, handlers: Mapping[type[Message], BatchHandler[Any]], **options: Any
    ) -> AsyncIterator[Consumer]:
        consumer = Consumer(self.broker, self.publisher, self.parking, QUEUE, handlers, **options)
        await consumer.start()
        try:
            yield consumer
        finally:
            consumer.drain()
            await consumer.stop()

    async def parked_reasons(self) -> list[str]:
        return [parked.reason for parked in await self.parking.select_page()]


@pytest.fixture
async def world(broker: Broker, publisher: Publisher, kernel_database: Database, amqp_url: str) -> AsyncIterator[World]:
    async with bus(amqp_url) as plain:
        yield World(broker, publisher, kernel_database, plain)


@pytest.mark.parametrize("style", ["single", "batch"])
async def test_messages_are_taken_in_order_handled_once_and_acked(world: World, style: str) -> None:
    handled = Handled()
    handler = handled.batch if style == "batch" else each(handled.one)
    async with world.consuming({EligibilityChanged: handler}), handling(QUEUE, 50):
        await world.publisher.publish(*(fact(number) for number in range(50)))
        assert sorted(await handled.wait_for(50)) == list(range(50))
    # Begun in the order of their arrival; batches run two at a time, so they may end in another one.
    assert handled.begun == list(range(50))
    assert await world.bus.count(QUEUE) == 0


async def test_what_waits_is_taken_in_bounded_batches(world: World) -> None:
    await world.publisher.publish(*(fact(number) for number in range(60)))
    handled = Handled()
    gate = asyncio.Event()
    async with world.consuming({EligibilityChanged: handled.batch}, batch_max=20, gate=gate.wait):
        await eventually(lambda: _is(world.bus.count(QUEUE), 0))
        gate.set()
        await handled.wait_for(60)
    assert max(handled.batches) <= 20
    assert len(handled.batches) < 30


async def test_messages_that_come_closely_share_a_batch_where_an_interval_is_asked_for(world: World) -> None:
    handled, interval_seconds, loop = Handled(), 0.5, asyncio.get_running_loop()
    async with world.consuming({EligibilityChanged: handled.batch}, interval_seconds=interval_seconds):
        began = loop.time()
        for number in range(50):
            await world.publisher.publish(fact(number))
        assert await handled.wait_for(50) == list(range(50))
        intervals = (loop.time() - began) / interval_seconds
    assert handled.batches[0] < 50, "the first one does not wait for others"
    assert len(handled.batches) <= 2 + intervals


async def test_a_full_batch_waits_for_no_interval(world: World) -> None:
    handled, filled = Handled(), asyncio.Event()
    options = {"batch_max": 20, "interval_seconds": 10 * GUARD_SECONDS, "gate": filled.wait}
    async with world.consuming({EligibilityChanged: handled.batch}, **options) as consumer:
        await world.publisher.publish(*(fact(number) for number in range(60)))
        await eventually(lambda: _has(consumer._arrived, 60))
        filled.set()
        await handled.wait_for(60)
    assert handled.batches == [20, 20, 20]


async def _has(items: Sized, count: int) -> bool:
    return len(items) == count


async def test_a_gate_that_fails_is_asked_again(world: World) -> None:
    asked = []

    async def gate() -> None:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("the gate is broken")

    handled = Handled()
    async with world.consuming({EligibilityChanged: handled.batch}, gate=gate):
        await world.publisher.publish(fact(7))
        assert await handled.wait_for(1) == [7]
    assert len(asked) >= 2


async def _is(count: Any, expected: int) -> bool:
    return bool(await count == expected)


async def test_returned_messages_are_published_before_the_delivery_is_acked(world: World) -> None:
    handled = Handled()
    handled.answer = lambda message: [abandoned(message.sequence)]
    async with world.consuming({EligibilityChanged: handled.batch}), handling(QUEUE, 2):
        await world.publisher.publish(fact(1), fact(2))
        await eventually(lambda: _is(world.bus.count("results.endings"), 2))
    assert await world.bus.count(QUEUE) == 0


async def test_a_delivery_is_not_acked_while_nobody_takes_what_it_returned(world: World) -> None:
    endings = await world.bus.channel.get_queue("results.endings")
    await endings.unbind("parley", "session.abandoned")
    handled = Handled()
    handled.answer = lambda message: [abandoned(message.sequence)]
    async with world.consuming({EligibilityChanged: handled.batch}):
        await world.publisher.publish(fact(1))
        await handled.wait_for(1)
    await eventually(lambda: _is(world.bus.count(QUEUE), 1))


def abandoned(number: int) -> SessionAbandoned:
    return SessionAbandoned(
        request_id=f"req_{number}",
        account_id="acct_1",
        session_id="ses_1",
        seq=1,
        status="failed",
        error=Failure(code="x", message="x"),
        accepted_at=NOW,
        abandoned_at=NOW,
    )


BAD_MESSAGES: dict[str, tuple[dict[str, Any], bytes, str | None, str]] = {
    "no attributes": ({}, b"{}", "application/json", "missing_attribute: ce-specversion"),
    "no id": ({"ce-id": ""}, b"{}", "application/json", "missing_attribute: ce-id"),
    "an id that is a number": ({"ce-id": 7}, b"{}", "application/json", "missing_attribute: ce-id"),
    "no source": ({"ce-source": ""}, b"{}", "application/json", "missing_attribute: ce-source"),
    "no type": ({"ce-type": ""}, b"{}", "application/json", "missing_attribute: ce-type"),
    "another version": ({"ce-specversion": "9.9"}, b"{}", "application/json", "invalid_attribute"),
    "a bad time": ({"ce-time": "yesterday"}, b"{}", "application/json", "invalid_attribute"),
    "a day that is none": ({"ce-time": "2026-02-30T12:00:00.000000Z"}, b"{}", "application/json", "invalid_attribute"),
    "a name that is none": ({"ce-a b": "x"}, b"{}", "application/json", "invalid_attribute"),
    "an unknown type": ({"ce-type": "dinner.served"}, b"{}", "application/json", "unknown_type"),
    "another content type": ({}, b"{}", "text/plain", "wrong_content_type"),
    "no content type": ({}, b"{}", None, "wrong_content_type"),
    "an empty body": ({}, b"", "application/json", "invalid_body: body: json_invalid"),
    "broken JSON": ({}, b'{"account_id":', "application/json", "invalid_body: body: json_invalid"),
    "not UTF-8": ({}, b"\xff\xfe", "application/json", "invalid_body: body: json_invalid"),
    "a list": ({}, b"[]", "application/json", "invalid_body: body: model_type"),
    "a field missing": ({}, b'{"account_id":"acct_1"}', "application/json", "invalid_body: sequence: missing"),
    "a field of another type": ({}, b'{"account_id":7}', "application/json", "invalid_body: account_id: string_type"),
    "another subject": (
        {"ce-subject": "acct_2"},
        fact(1).model_dump_json().encode(),
        "application/json",
        "subject_mismatch",
    ),
}
GOOD_HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "eligibility.changed:acct_1:1",
    "ce-source": "/parley/billing",
    "ce-type": "eligibility.changed",
    "ce-subject": "acct_1",
}


async def test_a_malformed_message_is_parked_with_its_reason_and_never_handled(world: World) -> None:
    handled = Handled()
    async with world.consuming({EligibilityChanged: handled.batch}):
        for number, (name, (headers, body, content_type, reason)) in enumerate(BAD_MESSAGES.items()):
            given = {**GOOD_HEADERS, **headers} if headers or name != "no attributes" else {}
            async with handling(QUEUE, 2):
                await world.bus.send_raw("eligibility.changed", body, given, content_type)
                await world.publisher.publish(fact(number))
            (parked,) = await world.parked_reasons()
            assert parked.startswith(reason), name
            # Those with one id would be one row.
            await world.database.execute("DELETE FROM parked_messages")
    assert [message.sequence for message in handled.messages] == list(range(len(BAD_MESSAGES)))
    assert await world.bus.count(QUEUE) == 0


async def _length(reasons: Any) -> int:
    return len(await reasons)


@pytest.mark.parametrize("style", ["single", "batch"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unprocessable("no_such_thing: really"), "no_such_thing: really"),
        (DatabaseRefused("23514", "size_positive"), "database_refused: sqlstate 23514 constraint size_positive"),
        (KeyError("canary"), "unexpected_error: KeyError"),
    ],
)
async def test_one_bad_message_among_many_is_parked_and_the_rest_are_handled(
    world: World, style: str, error: Exception, reason: str
) -> None:
    def refuse_the_seventh(message: EligibilityChanged) -> Sequence[Message]:
        if message.sequence == 7:
            raise error
        return []

    handled, counting = Handled(), asyncio.Event()

    async def until_counting() -> None:
        await counting.wait()

    handled.answer = refuse_the_seventh
    await world.publisher.publish(*(fact(number) for number in range(30)))
    handler = handled.batch if style == "batch" else each(handled.one)
    async with world.consuming({EligibilityChanged: handler}, gate=until_counting), handling(QUEUE, 30):
        counting.set()
        await eventually(lambda: _is(_length(world.parked_reasons()), 1))
        await eventually(lambda: _all_but_seven(handled))
    assert await world.parked_reasons() == [reason]
    assert await world.bus.count(QUEUE) == 0


async def _all_but_seven(handled: Handled) -> bool:
    return {message.sequence for message in handled.messages} == set(range(30)) - {7}


async def test_a_transient_failure_is_tried_again_in_the_process_without_a_new_delivery(world: World) -> None:
    failures = 3

    def fail_a_while(_: EligibilityChanged) -> Sequence[Message]:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Transient("away")
        return []

    handled = Handled()
    handled.answer = fail_a_while
    async with world.consuming({EligibilityChanged: handled.batch}), handling(QUEUE, 1):
        await world.publisher.publish(fact(1))
        assert await handled.wait_for(1) == [1]
    assert len(handled.batches) == 4
    assert await world.parked_reasons() == []
    assert await world.bus.count(QUEUE) == 0


async def test_one_message_that_never_succeeds_for_the_moment_waits_alone(world: World) -> None:
    tries = 0

    def fail_the_seventh(message: EligibilityChanged) -> Sequence[Message]:
        nonlocal tries
        if message.sequence == 7:
            tries += 1
            raise Transient("away, for this one")
        return []

    handled = Handled()
    handled.answer = fail_the_seventh
    await world.publisher.publish(*(fact(number) for number in range(30)))
    async with world.consuming({EligibilityChanged: handled.batch}):
        assert sorted(await handled.wait_for(29)) == [number for number in range(30) if number != 7]
        # Three times with all, then in halves: at most five cuts lead from thirty to one.
        assert tries <= 3 + 5 + 2
    assert await world.parked_reasons() == []
    await eventually(lambda: _is(world.bus.count(QUEUE), 1))


async def test_batches_that_stand_still_give_their_turn_to_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two messages fail for ever, each in a batch of its own; the next is handled."""
    monkeypatch.setattr("shared.messaging.consumer._ALONE_SECONDS_MAX", 0.4)

    def fail_the_first_two(message: EligibilityChanged) -> Sequence[Message]:
        if message.sequence < 2:
            raise Transient("away, for these two")
        return []

    handled = Handled()
    handled.answer = fail_the_first_two
    async with world.consuming({EligibilityChanged: handled.batch}, batch_max=1):
        await world.publisher.publish(fact(0), fact(1))
        await world.publisher.publish(*(fact(number) for number in range(2, 20)))
        # In hand are at most as many as the prefetch lets in: three, for batches of one.
        assert sorted(await handled.wait_for(18)) == list(range(2, 20))


async def test_a_batch_that_hangs_holds_up_no_other_for_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.messaging.consumer._ALONE_SECONDS_MAX", 0.2)
    hanging, go_on, others = asyncio.Event(), asyncio.Event(), Handled()

    async def hang_at_the_first(messages: Sequence[EligibilityChanged]) -> Sequence[Message]:
        if messages[0].sequence == 0:
            hanging.set()
            await go_on.wait()
        return await others.batch(messages)

    async with world.consuming({EligibilityChanged: hang_at_the_first}):
        await world.publisher.publish(fact(0))
        await hanging.wait()
        await world.publisher.publish(*(fact(number) for number in range(1, 20)))
        assert sorted(await others.wait_for(19)) == list(range(1, 20))
        go_on.set()
        assert sorted(await others.wait_for(20)) == list(range(20))


async def test_at_the_stop_what_was_not_handled_goes_back_to_the_queue(world: World) -> None:
    handled = Handled()

    def never(_: EligibilityChanged) -> Sequence[Message]:
        raise Transient("away")

    handled.answer = never
    async with world.consuming({EligibilityChanged: handled.batch}, batch_max=10):
        await world.publisher.publish(*(fact(number) for number in range(40)))
        await eventually(lambda: _at_least_one(handled))
    await eventually(lambda: _is(world.bus.count(QUEUE), 40))
    assert await world.parked_reasons() == []


async def _at_least_one(handled: Handled) -> bool:
    return len(handled.batches) >= 1


async def test_a_message_redelivered_too_often_is_parked_before_its_handler_runs(world: World) -> None:
    await world.bus.send_raw("eligibility.changed", fact(1).model_dump_json().encode(), GOOD_HEADERS)
    queue = await world.bus.channel.get_queue(QUEUE)
    for _ in range(20):
        incoming = await queue.get(timeout=5, fail=False)
        while incoming is None:
            incoming = await queue.get(timeout=5, fail=False)
        await incoming.reject(requeue=True)
    handled = Handled()
    async with world.consuming({EligibilityChanged: handled.batch}):
        await eventually(lambda: _is(_length(world.parked_reasons()), 1))
    assert (await world.parked_reasons())[0].startswith("redelivered_too_often: 20")
    assert handled.messages == []


async def test_a_message_that_cannot_be_parked_now_is_parked_later(world: World) -> None:
    await world.database.execute("ALTER TABLE parked_messages RENAME TO hidden")
    before = paused()
    async with world.consuming({EligibilityChanged: each(Handled().one)}):
        await world.bus.send_raw("eligibility.changed", b"no json", GOOD_HEADERS)

        async def has_paused() -> bool:
            return paused() > before

        await eventually(has_paused)
        await world.database.execute("ALTER TABLE hidden RENAME TO parked_messages")
        await eventually(lambda: has_parked(world, 1))


def paused() -> float:
    return counted("messages_handled", queue=QUEUE, verdict="paused")


async def has_parked(world: World, count: int) -> bool:
    return len(await world.parked_reasons()) == count


async def test_a_parked_message_is_listed_without_its_content_and_replayed(world: World) -> None:
    refuse = True

    def maybe_refuse(_: EligibilityChanged) -> Sequence[Message]:
        if refuse:
            raise Unprocessable("not_yet: a bug of ours")
        return []

    handled = Handled()
    handled.answer = maybe_refuse
    async with world.consuming({EligibilityChanged: handled.batch}):
        await world.publisher.publish(fact(1))
        await eventually(lambda: _is(_length(world.parked_reasons()), 1))
        parked = (await world.parking.select_page())[0]
        assert (parked.type, parked.ce_id, parked.queue) == ("eligibility.changed", fact(1).id, QUEUE)
        assert "acct_1" not in str(parked).replace(fact(1).id, "")
        refuse = False
        assert await replay(world.parking, world.broker, parked.id)
        assert await handled.wait_for(1) == [1]
        assert await world.parked_reasons() == []
        assert not await replay(world.parking, world.broker, 999_999)


async def test_the_same_message_parked_twice_is_one_row(world: World) -> None:
    handled = Handled()

    def refuse(_: EligibilityChanged) -> Sequence[Message]:
        raise Unprocessable("never: no")

    handled.answer = refuse
    async with world.consuming({EligibilityChanged: handled.batch}):
        await world.publisher.publish(fact(1))
        await world.publisher.publish(fact(1))
        await eventually(lambda: _parked_twice(world))


async def _parked_twice(world: World) -> bool:
    return [parked.times_parked for parked in await world.parking.select_page()] == [2]


class Rows:
    """Rows with a mark, in memory: what OwedPublishes is given."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.unmarked = {message.id: message for message in messages}
        self.marks: list[list[str]] = []

    async def are_marked(self) -> bool:
        return self.unmarked == {}

    async def select_owed(self, limit: int) -> Sequence[Message]:
        return list(self.unmarked.values())[:limit]

    async def mark_published(self, messages: Sequence[Message]) -> None:
        self.marks.append([message.id for message in messages])
        for message in messages:
            self.unmarked.pop(message.id, None)


async def test_owed_publishes_are_paid_and_marked_in_batches(world: World) -> None:
    rows = Rows([fact(number) for number in range(100)])
    owed = OwedPublishes(
        "test", world.publisher, select_owed=rows.select_owed, mark_published=rows.mark_published, sweep_seconds=3600
    )
    listener = await world.bus.listen("eligibility.changed")
    await owed.start()
    owed.pay(list(rows.unmarked.values()))
    await listener.wait_for(100)
    await eventually(rows.are_marked)
    await owed.stop()
    assert len(rows.marks) < 10


async def test_the_sweep_pays_what_nobody_paid(world: World) -> None:
    rows = Rows([fact(number) for number in range(5)])
    owed = OwedPublishes("test", world.publisher, select_owed=rows.select_owed, mark_published=rows.mark_published)
    listener = await world.bus.listen("eligibility.changed")
    assert await owed.sweep() == 5
    assert await owed.sweep() == 0
    heard = await listener.wait_for(5)
    assert {incoming.headers["ce-id"] for incoming in heard} == {fact(number).id for number in range(5)}
    assert len({incoming.message_id for incoming in heard}) == 5


async def test_what_is_confirmed_and_not_marked_yet_is_left_alone_by_a_sweep_and_marked_by_a_stop(world: World) -> None:
    rows = Rows([fact(number) for number in range(5)])
    owed = OwedPublishes(
        "test", world.publisher, select_owed=rows.select_owed, mark_published=rows.mark_published, sweep_seconds=3600
    )
    listener = await world.bus.listen("eligibility.changed")
    await owed.start()
    owed.pay(list(rows.unmarked.values()))
    await listener.wait_for(5)
    assert await owed.sweep() == 0
    await owed.stop()
    assert await rows.are_marked()
    await world.publisher.publish(fact(5))
    heard = await listener.wait_for(6)
    assert [incoming.headers["ce-id"] for incoming in heard[5:]] == [fact(5).id]


async def test_a_wake_queue_hears_hints_of_every_replica(world: World) -> None:
    woken: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
    queues = [
        WakeQueue(
            world.broker,
            "gateway.wake",
            {RequestsMoved: lambda moved: woken.put_nowait(moved.request_ids)},
            on_reconnect=lambda: None,
        )
        for _ in range(2)
    ]
    for queue in queues:
        await queue.start()
    world.publisher.send(RequestsMoved(request_ids=("req_1", "req_2")))
    async with asyncio.timeout(GUARD_SECONDS):
        assert [await woken.get(), await woken.get()] == [("req_1", "req_2")] * 2


async def waking(world: World) -> asyncio.Queue[tuple[str, ...]]:
    """The ids of each hint that a replica hears from now on."""
    woken: asyncio.Queue[tuple[str, ...]] = asyncio.Queue()
    hears: dict[type[Message], Callable[[Any], None]] = {
        RequestsMoved: lambda moved: woken.put_nowait(moved.request_ids)
    }
    await WakeQueue(world.broker, "gateway.wake", hears, on_reconnect=lambda: None).start()
    return woken


async def test_what_is_sent_later_is_made_when_it_is_sent_or_not_at_all(world: World) -> None:
    woken = await waking(world)
    news = ["early"]
    assert world.publisher.send_made(RequestsMoved.type, lambda: None)
    assert world.publisher.send_made(RequestsMoved.type, lambda: RequestsMoved(request_ids=tuple(news)))
    news.append("late")
    async with asyncio.timeout(GUARD_SECONDS):
        assert await woken.get() == ("early", "late")


async def test_what_cannot_be_made_stops_nobody_elses_hints(world: World) -> None:
    woken = await waking(world)

    def fail() -> Message:
        raise KeyError("canary")

    for number in range(3):  # in one packet
        world.publisher.send(RequestsMoved(request_ids=(f"req_{number}",)))
        assert world.publisher.send_made(RequestsMoved.type, fail)
    async with asyncio.timeout(GUARD_SECONDS):
        assert [await woken.get() for _ in range(3)] == [("req_0",), ("req_1",), ("req_2",)]


async def test_hints_that_come_closely_share_a_write_where_an_interval_is_asked_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, loop, interval_seconds = [], asyncio.get_running_loop(), 0.5
    write = publishing._write

    async def noted(*args: Any, wait: bool = False, **options: Any) -> None:
        writes.append(wait)
        await write(*args, wait=wait, **options)

    monkeypatch.setattr(publishing, "_write", noted)
    slow = Publisher(world.broker, interval_seconds=interval_seconds)
    await slow.start()
    began = loop.time()
    for _ in range(50):
        slow.send(RequestsMoved(request_ids=("req_1",)))
        await asyncio.sleep(0.001)
    await eventually(lambda: _has(writes, 50))
    await slow.stop()
    assert sum(writes) <= 2 + (loop.time() - began) / interval_seconds


async def test_a_hundred_messages_that_are_published_together_are_one_write_to_the_broker(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    send = GatheringWriter._send

    def noted(self: GatheringWriter) -> None:
        if self._gathered:
            writes.append(len(self._gathered))
        send(self)

    monkeypatch.setattr(GatheringWriter, "_send", noted)
    assert await world.publisher.publish_each([fact(number) for number in range(100)]) == ["confirmed"] * 100
    # A heartbeat, or the acks of another connection, may be written meanwhile.
    assert max(writes) == 100


async def test_an_unroutable_mandatory_message_is_not_taken_for_published(world: World) -> None:
    queue = await world.bus.channel.get_queue(QUEUE)
    await queue.unbind("parley", "eligibility.changed")
    assert await world.publisher.publish_each([fact(1)]) == ["unconfirmed"]
