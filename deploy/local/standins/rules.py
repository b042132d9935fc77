"""Scripted steps: a rule matches calls and hands out its steps one by one; the first rule with a step wins."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from deploy.local.standins.control import ControlError, filled

RULES_MAX = 20_000
CallT = TypeVar("CallT")
CallT_contra = TypeVar("CallT_contra", contravariant=True)
StepT = TypeVar("StepT")


class Match(Protocol[CallT_contra]):
    def holds(self, call: CallT_contra) -> bool: ...


@dataclass(slots=True)
class Rule(Generic[CallT, StepT]):
    """`steps` are used one per matching call, starting with the nth match; `repeat` keeps the last step for ever."""

    number: int
    match: Match[CallT]
    steps: list[StepT]
    nth: int = 1
    repeat: bool = False
    seen: int = 0

    def step(self, call: CallT) -> StepT | None:
        if not self.match.holds(call):
            return None
        self.seen += 1
        position = self.seen - self.nth
        if position >= len(self.steps) and self.repeat:
            return self.steps[-1]
        return self.steps[position] if 0 <= position < len(self.steps) else None

    @property
    def matches_left(self) -> int:
        return self.nth + len(self.steps) - 1 - self.seen

    def view(self) -> dict[str, Any]:
        return {"rule": self.number, "seen": self.seen, "matches_left": None if self.repeat else self.matches_left}


class Rules(Generic[CallT, StepT]):
    """Rules in the order in which they were added; those bound to one key of a call are found by that key."""

    def __init__(
        self, match: type[Match[CallT]], step: type[StepT], key_of: Callable[[CallT | Match[CallT]], str | None]
    ) -> None:
        self._match, self._step, self._key_of = match, step, key_of
        self._numbers = 0
        self._by_key: dict[str | None, list[Rule[CallT, StepT]]] = {}

    def add(self, fields: Any) -> int:
        """Add one rule from JSON, {match?, steps: [...], nth?, repeat?}; gives its number."""
        if not isinstance(fields, dict) or set(fields) - {"match", "steps", "nth", "repeat"} or not fields.get("steps"):
            raise ControlError("a rule is {match?, steps: [...], nth?, repeat?} with at least one step")
        if len(self) >= RULES_MAX:
            raise ControlError(f"more than {RULES_MAX} rules")
        steps = [filled(self._step, step) for step in fields["steps"]]
        match = filled(self._match, fields.get("match", {}))
        self._numbers += 1
        rule = Rule(self._numbers, match, steps, int(fields.get("nth", 1)), bool(fields.get("repeat", False)))
        self._by_key.setdefault(self._key_of(match), []).append(rule)
        return rule.number

    def take(self, call: CallT) -> tuple[int, StepT] | None:
        """The step this call is to follow, with the number of its rule."""
        key = self._key_of(call)
        for found in (key, None) if key is not None else (None,):
            for rule in self._by_key.get(found, ()):
                step = rule.step(call)
                if step is not None:
                    self._drop_used_up(found, rule)
                    return rule.number, step
        return None

    def clear(self) -> None:
        self._by_key.clear()

    def view(self) -> list[dict[str, Any]]:
        return [rule.view() for rule in self]

    def __iter__(self) -> Iterator[Rule[CallT, StepT]]:
        for rules in self._by_key.values():
            yield from rules

    def __len__(self) -> int:
        return sum(len(rules) for rules in self._by_key.values())

    def _drop_used_up(self, key: str | None, rule: Rule[CallT, StepT]) -> None:
        if rule.repeat or rule.matches_left > 0:
            return
        rules = self._by_key[key]
        rules.remove(rule)
        if not rules:
            del self._by_key[key]
