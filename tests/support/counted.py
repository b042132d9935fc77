"""What this process has counted about itself: for what leaves no other trace to wait for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from shared.metrics import exposition
from tests.support.bus import eventually


def counted(name: str, **labels: str) -> float:
    """The counter `parley_<name>_total` so far, over all samples that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = exposition()[0].decode().splitlines()
    samples = [line for line in lines if line.startswith((f"parley_{name}_total ", f"parley_{name}_total{{"))]
    return sum(float(line.rpartition(" ")[2]) for line in samples if all(label in line for label in wanted))


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
