"""The life of a hold and the rule that prices an ending."""

import re
from pathlib import Path

import pytest

from services.billing.hold import NEXT, HoldState, ending_of, moved_to, states_before
from services.billing.stripe_event import NEXT as EVENT_NEXT
from services.billing.stripe_event import EventState
from shared.contracts.content import Outcome, Usage
from shared.contracts.results import RESULT_BY_STATUS
from shared.errors import IllegalTransition
from tests.unit.billing.facts import NOW

MIGRATION = Path(__file__).parents[3] / "services" / "billing" / "migrations" / "0001_create_billing.sql"


@pytest.mark.parametrize("state", HoldState)
@pytest.mark.parametrize("to", HoldState)
def test_a_hold_moves_as_the_table_says_and_no_other_way(state: HoldState, to: HoldState) -> None:
    if to in NEXT[state]:
        assert moved_to(state, to) is to
        assert state in states_before(to)
    else:
        with pytest.raises(IllegalTransition):
            moved_to(state, to)


def test_a_late_result_still_charges_an_expired_hold() -> None:
    assert states_before(HoldState.SETTLED) == ["expired", "held"]
    assert states_before(HoldState.RELEASED) == ["held"]


@pytest.mark.parametrize(("table", "states"), [("holds", HoldState), ("stripe_events", EventState)])
def test_the_database_knows_the_same_states(table: str, states: type[HoldState] | type[EventState]) -> None:
    body = MIGRATION.read_text().split(f"CREATE TABLE {table} (")[1].split(");\n")[0]
    listed = re.search(r"state +text NOT NULL CHECK \(state IN \(([^)]*)\)\)", body)
    assert listed is not None
    assert set(re.findall(r"'(\w+)'", listed[1])) == set(states)


def test_every_state_of_an_event_has_its_place_in_the_table() -> None:
    assert set(EVENT_NEXT) == set(EventState)


@pytest.mark.parametrize(
    ("status", "called", "usage", "to", "tokens", "reason"),
    [
        ("completed", True, Usage(input_tokens=3, output_tokens=4), "settled", 7, "completed"),
        ("completed", True, None, "settled", 0, "completed"),
        ("incomplete", True, Usage(input_tokens=3, output_tokens=4), "settled", 7, "incomplete"),
        ("failed", True, Usage(input_tokens=3, output_tokens=4), "released", 0, "failed"),
        ("refused", False, None, "released", 0, "refused"),
        ("cancelled", True, Usage(input_tokens=3, output_tokens=1), "settled", 4, "cancelled_while_running"),
        ("cancelled", False, None, "released", 0, "cancelled_before_any_call"),
    ],
)
def test_an_ending_costs_what_the_rule_says(
    status: Outcome, called: bool, usage: Usage | None, to: str, tokens: int, reason: str
) -> None:
    message = RESULT_BY_STATUS[status](
        request_id="req_1",
        account_id="acct_1",
        session_id="ses_1",
        seq=1,
        cursor=1,
        status=status,
        usage=usage,
        provider_called=called,
        ended_at=NOW,
        ended_by="session.ended",
    )
    ending = ending_of(message)
    assert (ending.to, ending.tokens, ending.reason, ending.result) == (to, tokens, reason, status)
