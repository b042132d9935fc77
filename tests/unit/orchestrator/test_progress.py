"""Many deltas become few messages, and nothing is lost or reordered between the two."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator import progress
from services.orchestrator.progress import DeltaType, Make, Progress, Send, announcement
from shared.contracts.orchestrator import PROGRESS_INDEX_MAX, ProgressEvent, SessionProgressed
from tests.support.guard import GUARD_SECONDS
from tests.unit.orchestrator.test_task import COMMAND

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)

deltas = st.lists(
    st.tuples(st.sampled_from(["output.delta", "refusal.delta"]), st.text(min_size=1, max_size=30)), max_size=50
)


class Timers:
    """Time that a test sets; nothing happens by itself."""

    def __init__(self) -> None:
        self.at = 100.0
        self.pending = 0
        self.due = 0.0

    def time(self) -> float:
        return self.at

    def call_later(self, delay: float, _callback: Callable[[], None]) -> Timers:
        self.pending += 1
        self.due = self.at + delay
        return self

    def cancel(self) -> None:
        self.pending -= 1


def started(timers: Timers) -> tuple[Progress, list[SessionProgressed]]:
    sent: list[SessionProgressed] = []

    def send(make: Make) -> bool:
        message = make()
        assert message is not None
        sent.append(message)
        return True

    return Progress(COMMAND, 2, "epoch", send, lambda: NOW, timers), sent


def taking(asked: list[Make], *, is_full: bool = False) -> Send:
    """Remembers what is asked for and makes nothing of it yet."""

    def send(make: Make) -> bool:
        asked.append(make)
        return not is_full

    return send


def test_a_delta_that_is_a_whole_answer_is_told_in_events_and_messages_of_a_usual_size() -> None:
    asked: list[Make] = []
    reporter = Progress(COMMAND, 2, "epoch", taking(asked), lambda: NOW, Timers())
    text = "0123456789" * 100_000
    reporter.add("output.delta", text)
    events: list[ProgressEvent] = []
    while asked:
        message = asked.pop()()
        assert message is not None and len(message.events) <= progress.EVENTS_MAX
        events += message.events
    assert max(len(event.text) for event in events) < 2 * progress.PENDING_CHARS_MAX
    assert "".join(event.text for event in events) == text


@given(deltas, st.lists(st.floats(min_value=0, max_value=0.2), min_size=50, max_size=50))
def test_the_events_together_are_the_deltas_in_order(
    given_deltas: list[tuple[DeltaType, str]], gaps: list[float]
) -> None:
    timers = Timers()
    reporter, sent = started(timers)
    for (kind, text), gap in zip(given_deltas, gaps, strict=False):
        timers.at += gap
        reporter.add(kind, text)
    reporter.flush()
    events = [event for message in sent for event in message.events]
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    for kind in ("output.delta", "refusal.delta"):
        whole = "".join(text for given_kind, text in given_deltas if given_kind == kind)
        assert "".join(event.text for event in events if event.type == kind) == whole
    assert reporter.text == "".join(text for kind, text in given_deltas if kind == "output.delta")
    assert timers.pending == 0
    assert reporter.text_bytes == sum(len(text.encode()) for _, text in given_deltas)


def test_the_first_delta_after_a_moment_goes_at_once_and_the_next_ones_together() -> None:
    timers = Timers()
    reporter, sent = started(timers)
    reporter.begin()
    timers.at += progress.INTERVAL_SECONDS
    reporter.add("output.delta", "a")
    assert [event.text for event in sent[0].events] == ["a"]
    reporter.add("output.delta", "b")
    reporter.add("output.delta", "c")
    assert len(sent) == 1
    timers.at += 2 * progress.INTERVAL_SECONDS
    reporter.add("output.delta", "d")
    assert [event.text for event in sent[1].events] == ["bcd"]


def test_what_one_message_cannot_hold_is_asked_for_again() -> None:
    asked: list[Make] = []
    reporter = Progress(COMMAND, 2, "epoch", taking(asked), lambda: NOW, Timers())
    texts = [str(number) * progress.PENDING_CHARS_MAX for number in range(10)] * 20
    for text in texts:
        reporter.add("output.delta", text)
    made = [make() for make in asked]  # grows while it is gone through
    events = [[event.index for event in message.events] for message in made if message is not None]
    assert [len(of_one) for of_one in events] == [64, 64, 64, 8]
    assert [index for of_one in events for index in of_one] == list(range(1, len(texts) + 1))
    assert "".join(event.text for message in made if message for event in message.events) == "".join(texts)


def test_much_text_does_not_wait_for_the_interval() -> None:
    timers = Timers()
    reporter, sent = started(timers)
    reporter.begin()
    reporter.add("output.delta", "a")
    assert sent == []
    reporter.add("output.delta", "x" * progress.PENDING_CHARS_MAX)
    assert len(sent) == 1


def test_of_an_answer_that_is_whole_at_once_nothing_is_told() -> None:
    timers = Timers()
    reporter, sent = started(timers)
    reporter.begin()
    reporter.add("output.delta", "a")
    reporter.drop()
    assert (sent, timers.pending, reporter.text) == ([], 0, "a")


def test_text_is_not_held_back_for_as_long_as_the_announcement_of_a_silent_call() -> None:
    timers = Timers()
    reporter, sent = started(timers)
    reporter.begin()
    assert timers.due == timers.at + progress.SILENCE_SECONDS
    timers.at += progress.INTERVAL_SECONDS / 2
    reporter.add("output.delta", "a")
    reporter.add("output.delta", "b")
    assert (sent, timers.pending) == ([], 1)
    assert timers.due == timers.at + progress.INTERVAL_SECONDS / 2


def test_what_has_not_gone_when_the_answer_is_whole_need_not_go() -> None:
    asked: list[Make] = []
    reporter = Progress(COMMAND, 1, "epoch", taking(asked), lambda: NOW, Timers())
    reporter.begin()
    reporter.flush()
    reporter.drop()
    assert [make() for make in asked] == [None]


def test_what_comes_before_the_message_is_made_is_in_it() -> None:
    asked: list[Make] = []
    timers = Timers()
    reporter = Progress(COMMAND, 1, "epoch", taking(asked), lambda: NOW, timers)
    for text in ("a", "b", "c"):
        timers.at += 1
        reporter.add("output.delta", text)
    (make,) = asked
    made = make()
    assert made is not None
    assert [event.text for event in made.events] == ["abc"]
    timers.at += 1
    reporter.add("output.delta", "d")
    assert len(asked) == 2


def test_what_nobody_takes_now_is_offered_again() -> None:
    asked: list[Make] = []
    timers = Timers()
    reporter = Progress(COMMAND, 1, "epoch", taking(asked, is_full=True), lambda: NOW, timers)
    for text in ("a", "b"):
        timers.at += 1
        reporter.add("output.delta", text)
    assert len(asked) == 2


def test_an_event_does_not_grow_without_end() -> None:
    timers = Timers()
    asked: list[Make] = []
    reporter = Progress(COMMAND, 1, "epoch", taking(asked), lambda: NOW, timers)
    piece = "x" * (progress.PENDING_CHARS_MAX // 2)
    for _ in range(5):
        reporter.add("output.delta", piece)
    (make,) = asked
    made = make()
    assert made is not None
    assert [len(event.text) for event in made.events] == [2 * len(piece), 2 * len(piece), len(piece)]


def test_of_a_call_that_failed_at_once_all_is_told() -> None:
    timers = Timers()
    reporter, sent = started(timers)
    reporter.begin()
    reporter.add("output.delta", "a")
    reporter.flush()
    assert [[event.text for event in message.events] for message in sent] == [["a"]]
    assert timers.pending == 0


async def test_a_delta_that_nothing_follows_goes_after_the_interval() -> None:
    heard = asyncio.Event()
    sent: list[SessionProgressed] = []

    def send(make: Make) -> bool:
        message = make()
        assert message is not None
        sent.append(message)
        if len(sent) == 2:
            heard.set()
        return True

    reporter = Progress(COMMAND, 1, "epoch", send, lambda: NOW, asyncio.get_running_loop())
    reporter.add("output.delta", "a")
    reporter.add("output.delta", "b")
    async with asyncio.timeout(GUARD_SECONDS):
        await heard.wait()
    assert [event.text for event in sent[1].events] == ["b"]


def test_an_attempt_that_is_silent_for_a_moment_is_announced_without_events() -> None:
    timers = Timers()
    reporter, sent = started(timers)
    reporter.begin()
    reporter.flush()  # as its timer does
    assert (sent[0].attempt, sent[0].events, sent[0].waiting_on) == (2, (), None)
    reporter.flush()
    assert len(sent) == 1


def test_a_full_log_takes_no_more_events() -> None:
    timers = Timers()
    reporter, sent = started(timers)
    reporter._index = PROGRESS_INDEX_MAX - 1
    for kind in ("output.delta", "refusal.delta"):
        timers.at += 1
        reporter.add(kind, "x")
    assert [event.index for message in sent for event in message.events] == [PROGRESS_INDEX_MAX]


def test_a_wait_is_announced_with_its_reason_and_end() -> None:
    message = announcement(COMMAND, 0, "epoch", NOW, waiting_on="eligibility", waiting_until=NOW)
    assert (message.waiting_on, message.waiting_until, message.attempt) == ("eligibility", NOW, 0)
