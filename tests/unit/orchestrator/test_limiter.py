"""Token buckets: whatever the schedule, the limit holds; and who is told to come back finds room."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.limiter import (
    QUEUE_AHEAD_SECONDS_MAX,
    Admitted,
    Bucket,
    ComeBack,
    Ledger,
    Limits,
    NeverFits,
    NotBefore,
    Place,
    Placed,
    TooCostly,
    admit,
    closed,
    refill,
    settled,
)

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
UNLIMITED = Limits()


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def bucket(**fields: object) -> Bucket:
    return Bucket("openai", NOW, **fields)  # type: ignore[arg-type]


def admitted(answer: Admitted | NotBefore) -> Bucket:
    assert isinstance(answer, Admitted)
    return answer.bucket


def refused(answer: Admitted | NotBefore) -> NotBefore:
    assert isinstance(answer, NotBefore)
    return answer


gaps = st.one_of(st.just(0.0), st.floats(min_value=0, max_value=1), st.floats(min_value=-0.5, max_value=40))
"""Bursts too, without which a limit hardly binds; and clocks that step back."""
calls = st.lists(
    st.tuples(
        gaps,
        st.integers(min_value=0, max_value=200),
        st.booleans(),
        st.integers(min_value=-100, max_value=200),
    ),
    max_size=80,
)


@given(
    calls,
    st.one_of(st.integers(min_value=1, max_value=4), st.integers(min_value=1, max_value=120)),
    st.integers(min_value=200, max_value=2000),
)
def test_over_any_window_calls_and_tokens_stay_within_capacity_and_rate(
    schedule: list[tuple[float, int, bool, int]], requests_per_minute: int, tokens_per_minute: int
) -> None:
    limits = Limits(requests_per_minute, tokens_per_minute)
    state, at, made = bucket(), 0.0, []
    for gap, tokens, queued, _ in schedule:
        at += gap
        answer = admit(state, limits, tokens, after(at), queued=queued)
        state = answer.bucket
        if isinstance(answer, Admitted):
            made.append((at, tokens))
    for first in range(len(made)):
        for last in range(first, len(made)):
            # A clock that stepped back by half a second a few times is part of the schedule.
            window = max(when for when, _ in made[: last + 1]) - min(when for when, _ in made[first:])
            inside = made[first : last + 1]
            assert len(inside) <= requests_per_minute * (1 + window / 60) + 1e-6
            assert sum(tokens for _, tokens in inside) <= tokens_per_minute * (1 + window / 60) + 1e-6


@given(calls, st.integers(min_value=200, max_value=2000))
def test_settling_never_fills_a_bucket_beyond_its_capacity(
    schedule: list[tuple[float, int, bool, int]], tokens_per_minute: int
) -> None:
    limits, state, at = Limits(tokens_per_minute=tokens_per_minute), bucket(), 0.0
    for gap, tokens, queued, back in schedule:
        at += gap
        state = settled(admit(state, limits, tokens, after(at), queued=queued).bucket, limits, back)
        assert state.tokens is not None
        assert state.tokens <= tokens_per_minute


@given(calls, st.integers(min_value=1, max_value=120))
def test_who_comes_back_when_told_to_finds_room_unless_somebody_else_took_it(
    schedule: list[tuple[float, int, bool, int]], requests_per_minute: int
) -> None:
    limits, state, at = Limits(requests_per_minute, 1000), bucket(), 0.0
    for gap, tokens, queued, _ in schedule:
        at += abs(gap)
        answer = admit(state, limits, tokens, after(at), queued=queued)
        state = answer.bucket
        if isinstance(answer, NotBefore) and (answer.due - after(at)).total_seconds() < QUEUE_AHEAD_SECONDS_MAX:
            assert isinstance(admit(state, limits, tokens, answer.due, queued=True), Admitted)


def test_a_bucket_starts_full_and_refills_at_its_rate() -> None:
    limits = Limits(requests_per_minute=60)
    state = bucket()
    for _ in range(60):
        state = admitted(admit(state, limits, 0, NOW, queued=False))
    assert refused(admit(state, limits, 0, NOW, queued=False)).due == after(1)
    assert isinstance(admit(state, limits, 0, after(1), queued=False), Admitted)


def test_those_sent_away_are_told_instants_one_place_apart() -> None:
    limits, state, dues = Limits(requests_per_minute=60), bucket(requests=0.0), []
    for _ in range(3):
        answer = refused(admit(state, limits, 0, NOW, queued=False))
        state = answer.bucket
        dues.append(answer.due)
    assert dues == [after(1), after(2), after(3)]


def test_a_newcomer_does_not_overtake_those_who_were_sent_away() -> None:
    limits = Limits(requests_per_minute=60)
    waiting = refused(admit(bucket(requests=0.0), limits, 0, NOW, queued=False)).bucket
    newcomer = refused(admit(waiting, limits, 0, after(1), queued=False))
    assert newcomer.due > after(1)
    assert isinstance(admit(newcomer.bucket, limits, 0, after(1), queued=True), Admitted)


def test_nobody_is_sent_away_for_longer_than_estimates_hold() -> None:
    limits, state = Limits(requests_per_minute=60), bucket(requests=0.0)
    for _ in range(100):
        answer = refused(admit(state, limits, 0, NOW, queued=False))
        state = answer.bucket
    assert answer.due == after(QUEUE_AHEAD_SECONDS_MAX)


def test_a_cost_above_a_full_bucket_never_fits() -> None:
    with pytest.raises(NeverFits):
        admit(bucket(), Limits(tokens_per_minute=1000), 1001, NOW, queued=False)


def test_a_closed_domain_opens_at_the_instant_named_and_not_before() -> None:
    state = closed(bucket(), after(30))
    assert refused(admit(state, UNLIMITED, 10, after(29.999), queued=True)).due == after(30)
    assert isinstance(admit(state, UNLIMITED, 10, after(30), queued=True), Admitted)


def test_a_shorter_word_does_not_open_a_closed_domain() -> None:
    assert closed(closed(bucket(), after(30)), after(5)).closed_until == after(30)


def test_an_earlier_clock_takes_nothing_back() -> None:
    limits = Limits(requests_per_minute=60)
    later = refill(bucket(requests=0.0), limits, after(10))
    assert refill(later, limits, after(5)) == later


def test_a_debt_is_paid_by_the_refill() -> None:
    limits = Limits(tokens_per_minute=60)
    state = settled(bucket(tokens=0.0), limits, -30)
    assert refused(admit(state, limits, 0, NOW, queued=False)).due == after(30)


def test_a_lowered_limit_lowers_a_fuller_bucket() -> None:
    assert refill(bucket(requests=600.0), Limits(requests_per_minute=60), NOW).requests == 60


A, B = Place("a", "domain-a"), Place("b", "domain-b")


def ledger(limits_a: Limits, limits_b: Limits, *, requests_a: float = 1.0, requests_b: float = 1.0) -> Ledger:
    rows = {
        "domain-a": Bucket("domain-a", NOW, requests=requests_a),
        "domain-b": Bucket("domain-b", NOW, requests=requests_b),
    }
    return Ledger(rows, {"domain-a": limits_a, "domain-b": limits_b}, NOW)


def test_the_first_place_with_room_gets_the_call() -> None:
    limits = Limits(requests_per_minute=60)
    assert ledger(limits, limits).place([A, B], 1, queued=False) == Placed("a")
    assert ledger(limits, limits, requests_a=0).place([A, B], 1, queued=False) == Placed("b")


def test_without_any_room_the_earliest_instant_counts() -> None:
    slow, fast = Limits(requests_per_minute=6), Limits(requests_per_minute=60)
    placed = ledger(slow, fast, requests_a=0, requests_b=0).place([A, B], 1, queued=False)
    assert placed == ComeBack(after(1))


def test_a_call_that_fits_nowhere_is_too_costly() -> None:
    small = Limits(tokens_per_minute=10)
    assert ledger(small, small).place([A, B], 11, queued=False) == TooCostly()
    assert ledger(small, Limits()).place([A, B], 11, queued=False) == Placed("b")


def test_calls_of_one_batch_share_the_bucket() -> None:
    limits = Limits(requests_per_minute=60)
    shared = ledger(limits, limits, requests_a=2, requests_b=0)
    answers = [shared.place([A], 1, queued=False) for _ in range(3)]
    assert answers[:2] == [Placed("a"), Placed("a")]
    assert isinstance(answers[2], ComeBack)
    assert [row.name for row in shared.changed()] == ["domain-a"]


def test_a_domain_without_limits_is_not_written_back() -> None:
    unlimited = ledger(UNLIMITED, UNLIMITED)
    assert unlimited.place([A], 1, queued=False) == Placed("a")
    assert unlimited.changed() == []


def test_a_close_is_written_back_even_where_nothing_was_placed() -> None:
    unlimited = ledger(UNLIMITED, UNLIMITED)
    unlimited.close("domain-a", after(5))
    assert unlimited.place([A], 1, queued=False) == ComeBack(after(5))
    assert [(row.name, row.closed_until) for row in unlimited.changed()] == [("domain-a", after(5))]
