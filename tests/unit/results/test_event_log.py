"""The log of a request, without a database."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings

from services.results.event_log import (
    EVENT_BYTES_MAX,
    GAP_MAX,
    LOG_BYTES_MAX,
    Event,
    Head,
    RequestLog,
    Texts,
    first_cursor,
)
from services.results.proposal import Proposal
from shared.contracts.content import Failure
from shared.contracts.orchestrator import SessionProgressed
from tests.support.log_scenarios import History, check, histories, play, winner
from tests.support.result_messages import ACCOUNT, NOW, SESSION, output_of, progressed

REQUEST = "req_" + "c" * 32
HEAD = Head(REQUEST, ACCOUNT, SESSION, 1)
FIRST = first_cursor(1)


class MemoryWorld:
    """Does with a dictionary what the store does with tables."""

    def __init__(self) -> None:
        self.head = HEAD
        self.rows: dict[int, Event] = {}

    async def deliver(self, messages: Sequence[SessionProgressed]) -> None:
        log = self._open()
        for message in messages:
            log.take(message)
        self._write(log)

    async def end(self, proposal: Proposal) -> None:
        if self.head.closed:
            return
        log = self._open()
        log.close(
            proposal.status,
            proposal.output,
            proposal.error,
            proposal.final_attempt,
            at=proposal.ended_at,
            said=self._said(),
        )
        self._write(log)

    async def read(self, after: int, limit: int) -> Sequence[Event]:
        return [self.rows[cursor] for cursor in sorted(self.rows) if after < cursor <= self.head.visible_cursor][:limit]

    def _open(self) -> RequestLog:
        return RequestLog(self.head, [cursor for cursor in self.rows if cursor > self.head.visible_cursor])

    def _said(self) -> Texts:
        first = first_cursor(self.head.attempt)
        visible = [self.rows[cursor] for cursor in sorted(self.rows) if first <= cursor <= self.head.visible_cursor]
        return Texts("".join(event.text or "" for event in visible if event.type == "output.delta"))

    def _write(self, log: RequestLog) -> None:
        assert log.cut_after is None or log.cut_after >= self.head.visible_cursor, "what was seen stays"
        if log.cut_after is not None:
            self.rows = {cursor: event for cursor, event in self.rows.items() if cursor <= log.cut_after}
        for event in log.added:
            assert event.cursor > self.head.visible_cursor, "nothing is put before what was seen"
            assert event.cursor not in self.rows
            self.rows[event.cursor] = event
        self.head = log.head
        assert self.head.stored_cursor == max(self.rows, default=0)


@settings(max_examples=400, deadline=None)
@given(histories())
async def test_whatever_is_lost_repeated_or_reordered_every_reader_assembles_the_output(history: History) -> None:
    readers = await play(history, MemoryWorld(), REQUEST)
    check(history, readers, winner(history, REQUEST))


def test_a_request_that_never_ran_has_a_log_of_one_closing_event() -> None:
    log = RequestLog(HEAD)
    error = Failure(code="deadline_exceeded", message="Too late.")
    log.close("failed", None, error, 0, at=NOW, said=Texts())
    assert log.added == [
        Event(
            1,
            "request.failed",
            NOW,
            data={"status": "failed", "error": {"code": "deadline_exceeded", "message": "Too late."}},
        )
    ]
    assert (log.head.visible_cursor, log.head.closed) == (1, True)


def test_an_entry_that_arrives_early_is_seen_when_the_one_before_it_is_there() -> None:
    log = RequestLog(HEAD)
    assert log.take(progressed(REQUEST, 1, ["b"], first=2))
    assert log.head.visible_cursor == FIRST
    assert log.head.stored_cursor == FIRST + 2
    assert log.take(progressed(REQUEST, 1, ["a"]))
    assert log.head.visible_cursor == log.head.stored_cursor == FIRST + 2


def test_an_early_entry_alone_is_no_news_for_readers() -> None:
    log = RequestLog(HEAD)
    log.take(progressed(REQUEST, 1))
    assert not log.take(progressed(REQUEST, 1, ["b"], first=2))


def test_an_entry_stored_by_an_earlier_batch_closes_the_gap() -> None:
    log = RequestLog(_head(attempt=1, epoch="e", visible_cursor=FIRST + 1, stored_cursor=FIRST + 3), [FIRST + 3])
    log.take(progressed(REQUEST, 1, ["b"], first=2))
    assert log.head.visible_cursor == FIRST + 3
    assert [event.cursor for event in log.added] == [FIRST + 2]


def test_a_later_attempt_cuts_what_lies_beyond_the_gap_and_supersedes_the_rest() -> None:
    log = RequestLog(_head(attempt=1, epoch="e", visible_cursor=FIRST + 1, stored_cursor=FIRST + 3), [FIRST + 3])
    log.take(progressed(REQUEST, 2))
    assert log.cut_after == FIRST + 1
    assert log.added == [Event(first_cursor(2), "output.superseded", NOW, data={"attempt": 2})]


def test_late_text_of_a_superseded_attempt_is_refused_and_counted() -> None:
    log = RequestLog(HEAD)
    log.take(progressed(REQUEST, 2))
    assert not log.take(progressed(REQUEST, 1, ["a", "b"]))
    assert log.refused == {"superseded": 2}


def test_of_two_writers_under_one_attempt_only_the_first_is_heard() -> None:
    log = RequestLog(HEAD)
    log.take(progressed(REQUEST, 1, ["a"], epoch="worker"))
    assert not log.take(progressed(REQUEST, 1, ["x"], first=2, epoch="zombie"))
    assert log.refused == {"other_epoch": 1}
    assert log.head.visible_cursor == FIRST + 1


def test_a_wait_told_by_the_next_claim_is_news_but_adds_nothing() -> None:
    log = RequestLog(_head(attempt=1, epoch="first", visible_cursor=FIRST, stored_cursor=FIRST))
    assert log.take(progressed(REQUEST, 1, epoch="second", waiting_on="retry_backoff"))
    assert log.added == []


def test_text_before_the_first_attempt_is_refused() -> None:
    log = RequestLog(HEAD)
    assert not log.take(progressed(REQUEST, 0, ["a"]))
    assert log.added == []


def test_nothing_is_taken_after_the_end() -> None:
    log = RequestLog(_head(closed=True, visible_cursor=1, stored_cursor=1))
    assert not log.take(progressed(REQUEST, 5, ["a"]))
    assert log.refused == {"ended": 1}


def test_an_entry_far_beyond_the_gap_is_refused() -> None:
    log = RequestLog(HEAD)
    log.take(progressed(REQUEST, 1, ["a"], first=GAP_MAX))
    log.take(progressed(REQUEST, 1, ["b"], first=GAP_MAX + 1))
    assert log.refused == {"beyond_gap": 1}


def test_one_message_may_bring_more_than_a_gap_may_be_wide() -> None:
    log = RequestLog(HEAD)
    assert log.take(progressed(REQUEST, 1, ["a"] * (2 * GAP_MAX)))
    assert log.refused == {}
    assert log.head.visible_cursor == log.head.stored_cursor == FIRST + 2 * GAP_MAX


def test_text_beyond_the_bounds_is_refused() -> None:
    log = RequestLog(_head(attempt=1, epoch="e", visible_cursor=FIRST, stored_cursor=FIRST))
    log.take(progressed(REQUEST, 1, ["x" * (EVENT_BYTES_MAX + 1)]))
    full = RequestLog(
        _head(attempt=1, epoch="e", visible_cursor=FIRST, stored_cursor=FIRST, log_bytes=LOG_BYTES_MAX - 64)
    )
    full.take(progressed(REQUEST, 1, ["x"]))
    assert log.refused == full.refused == {"too_large": 1}


def test_the_end_supplies_exactly_what_was_missing() -> None:
    log = _closed_after("The sky", "The sky is blue.")
    assert [(event.type, event.text) for event in log.added] == [
        ("output.delta", " is blue."),
        ("request.completed", None),
    ]


def test_the_end_supersedes_text_that_the_output_does_not_begin_with() -> None:
    log = _closed_after("The sea", "The sky")
    assert [(event.type, event.text) for event in log.added] == [
        ("output.superseded", None),
        ("output.delta", "The sky"),
        ("request.completed", None),
    ]


def test_a_complete_log_gets_a_closing_event_only() -> None:
    log = _closed_after("The sky", "The sky")
    assert [event.type for event in log.added] == ["request.completed"]
    assert log.head.visible_cursor == FIRST + 2


def test_an_ending_of_an_attempt_never_heard_of_announces_it() -> None:
    log = RequestLog(HEAD)
    log.close("completed", output_of("Hi"), None, 1, at=NOW, said=Texts())
    assert [event.type for event in log.added] == ["attempt.started", "output.delta", "request.completed"]


def test_a_lost_refusal_is_supplied_too() -> None:
    log = RequestLog(HEAD)
    log.close("completed", output_of("", "I would rather not."), None, 1, at=NOW, said=Texts())
    assert [(event.type, event.text) for event in log.added[1:2]] == [("refusal.delta", "I would rather not.")]


def _closed_after(said: str, text: str) -> RequestLog:
    log = RequestLog(_head(attempt=1, epoch="e", visible_cursor=FIRST + 1, stored_cursor=FIRST + 1))
    log.close("completed", output_of(text), None, 1, at=NOW, said=Texts(said))
    return log


def _head(**changes: object) -> Head:
    return Head(REQUEST, ACCOUNT, SESSION, 1, **changes)  # type: ignore[arg-type]
