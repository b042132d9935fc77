"""What this process has counted about itself: for what leaves no other trace to wait for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from prometheus_client import REGISTRY

from tests.support.bus import eventually


def counted(name: str, **labels: str) -> float:
    """The counter `parley_<name>_total` so far, over all samples that have these labels."""
    return sampled(f"parley_{name}_total", **labels)


def sampled(name: str, **labels: str) -> float:
    """The sum of these samples. Only they are read: the text of all metrics would take as long as a test."""
    assert name in REGISTRY._names_to_collectors, f"nothing here is counted as {name}"
    return sum(
        sample.value
        for family in REGISTRY.restricted_registry([name]).collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


@contextlib.asynccontextmanager
async def handling(queue: str, count: int) -> AsyncIterator[None]:
    """Leave the block once the consumers of this process have given `count` more verdicts about this queue."""
    expected = _handled(queue) + count
    yield

    async def are_handled() -> bool:
        return _handled(queue) >= expected

    await eventually(are_handled)


def _handled(queue: str) -> float:
    return sum(counted("messages_handled", queue=queue, verdict=verdict) for verdict in ("acked", "parked", "dropped"))
