"""What an alert waits for is counted from zero: of a series that begins with its first event no increase is seen."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from services.billing import reconciler
from services.orchestrator import admission, claiming
from services.orchestrator.outcome import AttemptLedger
from shared.clock import SystemClock
from tests.unit.orchestrator.test_routing import routing

# Or nobody would make them.
MAKERS = (admission, claiming, reconciler)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("parley_tasks_claimed_total", {"source": "lost_worker"}),
        ("parley_holds_asked_total", {"verdict": "unreachable"}),
        ("parley_billing_reconciled_total", {"kind": "undelivered_event"}),
        ("parley_billing_reconciled_total", {"kind": "difference"}),
        ("parley_billing_reconciled_total", {"kind": "vanished"}),
    ],
)
def test_a_series_is_there_before_its_first_event(name: str, labels: dict[str, str]) -> None:
    assert REGISTRY.get_sample_value(name, labels) is not None


@pytest.mark.parametrize("outcome", ["unauthorized", "quota_exhausted", "not_found"])
def test_so_is_what_only_a_person_can_mend_of_each_deployment(outcome: str) -> None:
    AttemptLedger(routing(), SystemClock())
    for deployment in routing().deployment_names:
        labels = {"deployment": deployment, "outcome": outcome}
        assert REGISTRY.get_sample_value("parley_attempts_total", labels) is not None
