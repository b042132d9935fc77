"""When to try again, and when to give up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.orchestrator.backoff import (
    AGAIN,
    CLOCK_MARGIN_SECONDS,
    PAUSE_SECONDS_MAX,
    RETRY_AFTER_SECONDS_MAX,
    closed_seconds,
    dead_deployments,
    deadline_exceeded,
    full_jitter_seconds,
    give_up,
    permit_pause_seconds,
    retry_after_seconds,
    spent,
    waiting_on,
)
from services.orchestrator.task import FailureKind
from shared.contracts.orchestrator import AttemptRecord

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)


def record(attempt: int, outcome: str, **fields: Any) -> AttemptRecord:
    return AttemptRecord(
        attempt=attempt,
        deployment=fields.pop("deployment", "main"),
        provider="openai",
        upstream_model="m",
        started_at=NOW,
        ended_at=NOW,
        outcome=outcome,
        **fields,
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": " 3 "}, 3.0),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "999999999999"}, RETRY_AFTER_SECONDS_MAX),
        ({"retry-after-ms": "1e300"}, RETRY_AFTER_SECONDS_MAX),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, RETRY_AFTER_SECONDS_MAX),
        ({"retry-after": "60, 60"}, 60.0),
        ({"retry-after": "7, 30"}, 30.0),
        ({"retry-after-ms": "1500, 1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Sun, 01 Nov 2026 12:00:30 -0000"}, None),
        ({"retry-after": "Sun, 01 Nov 2026 11:59:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 01 Nov 2026 12:00:30 GMT"}, 30.0),
    ],
)
def test_a_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, NOW) == seconds


@given(st.integers(min_value=-86_400, max_value=86_400), st.integers(min_value=0, max_value=3600))
def test_a_date_counts_from_the_replys_own_date_whatever_its_clock_says(skew: int, wait: int) -> None:
    there = NOW + timedelta(seconds=skew)
    headers = {
        "date": format_datetime(there, usegmt=True),
        "retry-after": format_datetime(there + timedelta(seconds=wait), usegmt=True),
    }
    assert retry_after_seconds(headers, NOW) == wait


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_header_makes_the_reader_fail(retry_after: str, date: str) -> None:
    seconds = retry_after_seconds({"retry-after": retry_after, "retry-after-ms": date, "date": date}, NOW)
    assert seconds is None or seconds >= 0


@given(st.integers(min_value=1, max_value=1000), st.floats(min_value=0, max_value=1))
def test_a_pause_is_within_its_ceiling_however_many_failures(failures: int, chance: float) -> None:
    ceiling = min(PAUSE_SECONDS_MAX, 0.5 * 2 ** min(failures - 1, 30))
    assert 0 <= full_jitter_seconds(failures, chance) <= ceiling


@given(
    st.floats(min_value=0, max_value=10_000),
    st.integers(min_value=1, max_value=50),
    st.floats(min_value=0, max_value=1),
)
def test_a_domain_is_never_closed_for_less_than_the_provider_said(
    retry_after: float, failures: int, chance: float
) -> None:
    assert closed_seconds(retry_after, failures, chance) >= retry_after


def test_a_usable_retry_after_is_kept_exactly_but_for_the_clocks_margin() -> None:
    assert closed_seconds(7, 9, 0.9) == 7 + CLOCK_MARGIN_SECONDS


def test_billing_is_asked_less_often_the_longer_it_is_away() -> None:
    assert permit_pause_seconds(0, 0.5) == 1
    assert permit_pause_seconds(10, 0.5) == 5
    assert permit_pause_seconds(10_000, 0.5) == 15


def test_every_kind_of_failure_has_its_rule() -> None:
    assert set(AGAIN) == set(get_args(FailureKind))


def test_only_a_rate_limit_is_waited_for_as_one() -> None:
    assert waiting_on("rate_limited") == "provider_rate_limit"
    assert waiting_on("cut") == "retry_backoff"


def test_what_a_provider_timed_and_what_we_stopped_costs_no_attempt() -> None:
    attempts = [
        record(1, "cut"),
        record(2, "rate_limited", retry_after_seconds=3.0),
        record(3, "rate_limited"),
        record(4, "handed_back"),
        record(5, "worker_lost"),
    ]
    assert spent(attempts) == 2


def test_a_deployment_out_of_quota_is_dead_for_the_request() -> None:
    attempts = [
        record(1, "quota_exhausted", deployment="a"),
        record(2, "server_error", deployment="b"),
        record(3, "unauthorized", deployment="c"),
    ]
    assert dead_deployments(attempts) == {"a", "c"}


@pytest.mark.parametrize(
    ("attempts", "left", "code"),
    [
        ([record(1, "server_error")], True, None),
        ([record(1, "rejected", http_status=400)], True, "provider_rejected"),
        ([record(1, "too_large")], True, "output_too_large"),
        ([record(1, "quota_exhausted")], True, None),
        ([record(1, "quota_exhausted")], False, "provider_quota_exhausted"),
        ([record(1, "unauthorized")], False, "provider_misconfigured"),
        ([record(n, "server_error") for n in range(1, 10)], True, None),
        ([record(n, "server_error") for n in range(1, 11)], True, "attempts_exhausted"),
        ([record(n, "rate_limited", retry_after_seconds=1.0) for n in range(1, 51)], True, None),
        ([record(1000, "rate_limited", retry_after_seconds=1.0)], True, "attempts_exhausted"),
        ([record(n, "invalid_output") for n in range(1, 3)], True, None),
        ([record(n, "invalid_output") for n in range(1, 4)], True, "invalid_output"),
    ],
)
def test_giving_up(attempts: list[AttemptRecord], left: bool, code: str | None) -> None:
    failure = give_up(attempts, 10, deployment_left=left)
    assert (failure.code if failure else None) == code


def test_the_failure_names_the_last_error() -> None:
    failure = deadline_exceeded(
        [record(1, "rate_limited", http_status=429, error_code="slow_down")], "provider_rate_limit"
    )
    assert failure.code == "deadline_exceeded"
    assert "provider_rate_limit" in failure.message
    assert "rate_limited (HTTP 429, slow_down)" in failure.message
