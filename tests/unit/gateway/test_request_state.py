"""The state machine of requests, and that the database and the contracts use its words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from services.gateway.request_state import NEXT, OUTCOMES, State, is_ended, states_before
from shared.contracts.content import Outcome

MIGRATION = Path(__file__).parents[3] / "services/gateway/migrations/0001_create_gateway.sql"


def test_every_state_is_in_the_table() -> None:
    assert set(NEXT) == set(get_args(State))


def test_the_ended_states_are_the_outcomes_that_results_can_store() -> None:
    assert {state for state in NEXT if is_ended(state)} == set(get_args(Outcome)) == OUTCOMES


@pytest.mark.parametrize("ended", sorted(OUTCOMES))
def test_nothing_leaves_an_ended_state(ended: State) -> None:
    assert not any(ended in states_before(wanted) for wanted in NEXT)


@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
def test_every_open_state_reaches_every_outcome(outcome: State) -> None:
    assert states_before(outcome) == ["queued", "in_progress"]


def test_progress_moves_a_request_only_from_queued() -> None:
    assert states_before("in_progress") == ["queued"]


def test_the_database_checks_the_same_words() -> None:
    check = re.search(r"state\s+text\s+NOT NULL CHECK \(state IN \(([^)]*)\)", MIGRATION.read_text())
    assert check is not None
    assert set(re.findall(r"'(\w+)'", check[1])) == set(NEXT)
