"""The view of a request: what it waits for, when to look again, and what its entity tag stands for."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from services.gateway import snapshot
from services.gateway.headers import etag_matches
from services.gateway.records import Request
from shared.contracts.content import WaitingOn
from tests.unit.gateway.rows import NOW, RUNNING

WAITING = replace(RUNNING, dispatched_at=None, ahead=3)


def test_a_request_without_the_turn_waits_for_it_and_shows_its_place() -> None:
    shown = snapshot.view(WAITING, NOW)
    assert shown.waiting_on == "session_turn"
    assert shown.queue is not None
    assert shown.queue.position == 3


def test_a_running_request_is_worth_a_look_soon_and_less_so_with_time() -> None:
    ages_and_hints = [(0, 250), (9, 250), (10, 1000), (59, 1000), (60, 2000), (5000, 2000)]
    for age_seconds, poll_ms in ages_and_hints:
        assert snapshot.poll_after_ms(RUNNING, NOW + timedelta(seconds=age_seconds)) == poll_ms


@pytest.mark.parametrize("reason", ["eligibility", "provider_rate_limit", "retry_backoff", "capacity"])
def test_a_request_that_is_known_to_wait_is_looked_at_less_often_than_a_running_one(reason: WaitingOn) -> None:
    hint = snapshot.poll_after_ms(replace(RUNNING, waiting_on=reason), NOW)
    assert hint is not None
    assert hint > 250


def test_the_hint_of_a_long_queue_is_bounded() -> None:
    assert snapshot.poll_after_ms(replace(WAITING, ahead=99), NOW) == 5000


def test_retry_after_is_the_hint_in_whole_seconds_and_absent_at_the_end() -> None:
    assert snapshot.retry_after(250) == {"Retry-After": "1"}
    assert snapshot.retry_after(2001) == {"Retry-After": "3"}
    assert snapshot.retry_after(None) == {}


def test_the_tag_is_the_same_for_the_same_body_and_another_for_another() -> None:
    def tag(request: Request, now: datetime) -> str:
        shown = snapshot.view(request, now)
        return snapshot.etag_of(shown, snapshot.change_of(shown))

    later = NOW + timedelta(seconds=5)
    assert tag(RUNNING, NOW) == tag(RUNNING, later)
    assert tag(RUNNING, NOW) != tag(replace(RUNNING, state="in_progress"), NOW)
    assert tag(WAITING, NOW) != tag(replace(WAITING, ahead=2), NOW)


def test_a_new_hint_changes_the_tag_but_is_no_change_to_wait_for() -> None:
    """The body differs, so a strong tag must; a client that waits for news is not told that time has passed."""
    young, old = snapshot.view(RUNNING, NOW), snapshot.view(RUNNING, NOW + timedelta(seconds=30))
    change = snapshot.change_of(young)
    assert change == snapshot.change_of(old)
    assert not etag_matches([snapshot.etag_of(young, change)], snapshot.etag_of(old, change))
    assert snapshot.change_in([snapshot.etag_of(young, change)], change)
