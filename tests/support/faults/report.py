"""The counters of a run: what was asked, what became of it, which promises broke, and how often a fault bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["lost", "doubled", "charged_twice", "late", "unexpected"]
SHOWN_MAX = 40


@dataclass(frozen=True)
class Violation:
    """A promise that broke, and for whom."""

    kind: Kind
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.subject}: {self.text}"


@dataclass(frozen=True)
class Report:
    attempted: int
    accepted: int
    ended: int
    violations: Sequence[Violation]
    bites: Mapping[str, int]
    """Traces that faults have left, by what they are."""

    def count(self, kind: Kind) -> int:
        return sum(violation.kind == kind for violation in self.violations)

    @property
    def recovered(self) -> int:
        return sum(self.bites.values())

    def counters(self) -> str:
        broken = " ".join(
            f"{kind}={self.count(kind)}" for kind in ("lost", "doubled", "charged_twice", "late", "unexpected")
        )
        sums = f"attempted={self.attempted} accepted={self.accepted} ended={self.ended}"
        return f"{sums} {broken} recovered={self.recovered}"

    def __str__(self) -> str:
        lines = [self.counters()]
        lines += [f"  {name}: {count}" for name, count in sorted(self.bites.items()) if count]
        lines += [f"  {violation}" for violation in self.violations[:SHOWN_MAX]]
        if len(self.violations) > SHOWN_MAX:
            lines.append(f"  ... and {len(self.violations) - SHOWN_MAX} more")
        return "\n".join(lines)
