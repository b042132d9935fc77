"""The life of a hold: tokens reserved for one request until it is charged or let go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from shared.contracts.content import Outcome
from shared.contracts.results import ResultEnded
from shared.errors import IllegalTransition


class HoldState(StrEnum):
    """The same words stand in the CHECK of the table `holds`."""

    HELD = "held"
    SETTLED = "settled"
    RELEASED = "released"
    EXPIRED = "expired"


NEXT: Final[Mapping[HoldState, frozenset[HoldState]]] = {
    # The request's result settles or releases it; the sweeper expires it once `expires_at` has passed.
    HoldState.HELD: frozenset({HoldState.SETTLED, HoldState.RELEASED, HoldState.EXPIRED}),
    # A result that came after the expiry is still charged: the work was done.
    HoldState.EXPIRED: frozenset({HoldState.SETTLED}),
    HoldState.SETTLED: frozenset(),
    HoldState.RELEASED: frozenset(),
}


def moved_to(state: HoldState, to: HoldState) -> HoldState:
    """`to`, if a hold in `state` may move there."""
    if to not in NEXT[state]:
        raise IllegalTransition(f"a hold cannot move from {state} to {to}")
    return to


def states_before(to: HoldState) -> list[str]:
    """The states from which a hold may move to `to`: what guards the update."""
    return sorted(state for state, following in NEXT.items() if to in following)


@dataclass(frozen=True)
class HoldEnding:
    """What the result of a request does to its hold."""

    request_id: str
    account_id: str
    to: HoldState
    tokens: int
    """What is charged; 0 for a release."""
    reason: str
    result: Outcome


def ending_of(result: ResultEnded) -> HoldEnding:
    """The charging rule: an answer costs the tokens of the call that gave it, a cancelled call what it used."""
    tokens = result.usage.total_tokens if result.usage is not None else 0
    if result.status in {"completed", "incomplete"}:
        return _ending(result, HoldState.SETTLED, tokens, str(result.status))
    if result.status == "cancelled" and result.provider_called:
        return _ending(result, HoldState.SETTLED, tokens, "cancelled_while_running")
    if result.status == "cancelled":
        return _ending(result, HoldState.RELEASED, 0, "cancelled_before_any_call")
    return _ending(result, HoldState.RELEASED, 0, str(result.status))


def _ending(result: ResultEnded, to: HoldState, tokens: int, reason: str) -> HoldEnding:
    to = moved_to(HoldState.HELD, to)
    return HoldEnding(result.request_id, result.account_id, to, max(tokens, 0), reason, result.status)
