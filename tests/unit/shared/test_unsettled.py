"""One ack for a whole batch, and never one for a delivery that still waits for its verdict."""

from dataclasses import dataclass
from typing import Any, cast

from aio_pika.abc import AbstractIncomingMessage
from hypothesis import given
from hypothesis import strategies as st

from shared.messaging.unsettled import Unsettled


@dataclass(frozen=True)
class Delivery:
    channel: str
    delivery_tag: int


def deliveries(channel: str, count: int) -> list[AbstractIncomingMessage]:
    return [cast(Any, Delivery(channel, tag)) for tag in range(1, count + 1)]


def test_the_oldest_are_acked_together_and_what_is_newer_than_something_waiting_alone() -> None:
    unsettled, (one, two, three, four) = Unsettled(), deliveries("a", 4)
    for each in (one, two, three, four):
        unsettled.add(each)
    assert list(unsettled.take([three])) == [(three, False)]
    assert list(unsettled.take([two, one])) == [(two, True)]
    assert list(unsettled.take([four])) == [(four, True)]


def test_no_ack_stands_for_one_that_has_its_own_to_come() -> None:
    unsettled, (one, two, three, four) = Unsettled(), deliveries("a", 4)
    for each in (one, two, three, four):
        unsettled.add(each)
    singly = unsettled.take([two, three])
    assert next(singly) == (two, False)
    assert list(unsettled.take([one])) == [(one, True)]
    assert list(unsettled.take([four])) == [(four, False)]
    assert list(singly) == [(three, False)]


def test_the_tags_of_a_new_channel_are_others() -> None:
    unsettled, before, after = Unsettled(), deliveries("before", 2), deliveries("after", 2)
    for each in (*before, *after):
        unsettled.add(each)
    assert set(unsettled.take([before[1], after[0]])) == {(before[1], False), (after[0], True)}
    assert before[0] in unsettled
    assert before[1] not in unsettled
    assert after[1] in unsettled


@given(st.data())
def test_what_the_broker_hears_is_exactly_what_was_handled(data: st.DataObject) -> None:
    unsettled, waiting = Unsettled(), deliveries("a", data.draw(st.integers(1, 12)))
    for each in waiting:
        unsettled.add(each)
    open_at_broker = {each.delivery_tag for each in waiting}
    while waiting:
        batch = data.draw(st.lists(st.sampled_from(waiting), min_size=1, unique=True))
        for acked, stands_for_older in unsettled.take(batch):
            tag = acked.delivery_tag
            assert tag is not None
            open_at_broker -= set(range(1, tag + 1)) if stands_for_older else {tag}
        waiting = [each for each in waiting if each not in batch]
        assert open_at_broker == {each.delivery_tag for each in waiting}
