"""What must hold when everything has come to rest, whatever happened before: pure functions over the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.support.faults.evidence import Evidence
from tests.support.faults.invariants import buckets, clients, endings, money, provider, rest
from tests.support.faults.report import Violation

CHECKS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    *endings.CHECKS,
    *money.CHECKS,
    *provider.CHECKS,
    *buckets.CHECKS,
    *clients.CHECKS,
    *rest.CHECKS,
)


def violations(evidence: Evidence) -> list[Violation]:
    """Every promise that broke."""
    return [violation for check in CHECKS for violation in check(evidence)]
