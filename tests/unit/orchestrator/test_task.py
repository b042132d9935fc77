"""The life of a task as data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import get_args

import pytest

from services.orchestrator.task import (
    CANCELLED,
    NEXT,
    Finish,
    State,
    Task,
    cancelled_before_arrival,
    ending,
    moved_to,
    too_large,
)
from shared.contracts.content import CallSettings, MessageItem, Outcome, Output
from shared.contracts.gateway import SessionCancelRequested, SessionRequested
from shared.contracts.orchestrator import AttemptRecord, SessionEnded
from shared.errors import IllegalTransition

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
COMMAND = SessionRequested(
    request_id="req_1",
    account_id="acct_1",
    session_id="ses_1",
    seq=3,
    input=(MessageItem(role="user", content="hello"),),
    settings=CallSettings(),
    accepted_at=NOW,
    deadline_at=NOW + timedelta(minutes=1),
    grace_seconds=30,
)


def record(attempt: int, outcome: str) -> AttemptRecord:
    return AttemptRecord(
        attempt=attempt,
        deployment="main",
        provider="openai",
        upstream_model="m",
        started_at=NOW + timedelta(seconds=attempt),
        ended_at=NOW + timedelta(seconds=attempt + 1),
        outcome=outcome,
        retry_after_seconds=0.1,
    )


def test_every_state_has_its_moves_and_only_those_are_made() -> None:
    assert set(NEXT) == set(get_args(State))
    for state, target in product(get_args(State), repeat=2):
        if target in NEXT[state]:
            assert moved_to(state, target) == target
        else:
            with pytest.raises(IllegalTransition):
                moved_to(state, target)


def test_a_finished_task_never_moves_again() -> None:
    assert NEXT["finished"] == frozenset()


def test_an_ending_tells_the_whole_ledger() -> None:
    task = Task(COMMAND, attempts=(record(1, "cut"), record(2, "succeeded")))
    ended = ending(task, Finish("completed", final_attempt=2), NOW)
    assert [attempt.outcome for attempt in ended.attempts] == ["cut", "succeeded"]
    assert ended.started_at == NOW + timedelta(seconds=1)
    assert (ended.session_id, ended.seq, ended.input) == ("ses_1", 3, COMMAND.input)


def test_a_task_without_a_call_never_started() -> None:
    assert ending(Task(COMMAND), Finish("cancelled", error=CANCELLED), NOW).started_at is None


def test_an_ending_read_back_is_the_same_to_the_byte() -> None:
    body = ending(Task(COMMAND, attempts=(record(1, "cut"),)), Finish("failed"), NOW).model_dump_json()
    assert SessionEnded.model_validate_json(body).model_dump_json() == body


def test_only_a_turn_of_the_transcript_carries_its_input() -> None:
    ended = {status: ending(Task(COMMAND), Finish(status), NOW).input for status in get_args(Outcome)}
    assert [status for status, turn in ended.items() if turn == COMMAND.input] == ["completed", "incomplete"]
    assert [status for status, turn in ended.items() if turn == ()] == ["failed", "refused", "cancelled"]


def test_an_ending_that_is_too_large_fails_and_keeps_its_ledger() -> None:
    output = Output(items=(MessageItem(role="assistant", content="hi"),), finish_reason="stop")
    ended = ending(Task(COMMAND, attempts=(record(1, "succeeded"),)), Finish("completed", output=output), NOW)
    smaller = too_large(ended)
    assert smaller is not None
    assert (smaller.status, smaller.error and smaller.error.code) == ("failed", "output_too_large")
    assert (smaller.output, smaller.usage, smaller.input, smaller.final_attempt) == (None, None, (), 0)
    assert (smaller.id, smaller.attempts, smaller.started_at) == (ended.id, ended.attempts, ended.started_at)
    assert too_large(smaller) is None


def test_a_cancel_that_overtook_its_command_never_started() -> None:
    command = SessionCancelRequested(request_id="req_1", account_id="acct_1", session_id="ses_1", seq=1)
    ended = cancelled_before_arrival(command, NOW)
    assert (ended.status, ended.started_at, ended.attempts) == ("cancelled", None, ())
