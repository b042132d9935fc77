"""The life of a request as its owner sees it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, get_args

from shared.contracts.content import Outcome

State: TypeAlias = Literal["queued", "in_progress", "completed", "incomplete", "failed", "refused", "cancelled"]

OUTCOMES: Final[frozenset[State]] = frozenset(get_args(Outcome))
"""The states that nothing leaves."""

NEXT: Final[dict[State, frozenset[State]]] = {
    # Accepted and durable. Progress moves it to in_progress; any ending that results has stored moves it at once,
    # since progress is best effort and may never be heard of.
    "queued": frozenset({"in_progress", *OUTCOMES}),
    # A provider call has started. Only an ending moves it: a retry or a wait does not lead back to queued.
    "in_progress": OUTCOMES,
    # Results decides which of these it is, once. Later words about the request are counted and dropped.
    "completed": frozenset(),
    "incomplete": frozenset(),
    "failed": frozenset(),
    "refused": frozenset(),
    "cancelled": frozenset(),
}


def is_ended(state: State) -> bool:
    return not NEXT[state]


def states_before(wanted: State) -> list[State]:
    """The states from which `wanted` is reached: what a guarded UPDATE names in its WHERE."""
    return [state for state, following in NEXT.items() if wanted in following]
