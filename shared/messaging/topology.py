"""The exchange, the queues and what is bound to them, as data. Every service declares all of it at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

EXCHANGE: Final = "parley"
"""A durable topic exchange; the routing key of a message is its type."""

_BEST_EFFORT_LENGTH_MAX: Final = 50_000

ENDINGS: Final = ("result.completed", "result.incomplete", "result.failed", "result.refused", "result.cancelled")


@dataclass(frozen=True)
class Queue:
    """`durable` queues are quorum queues and lose nothing; `best_effort` ones are bounded and drop their oldest."""

    name: str
    bindings: tuple[str, ...]
    kind: Literal["durable", "best_effort"] = "durable"

    @property
    def arguments(self) -> dict[str, str | int]:
        """What the declaration says. Limits of durable queues belong to operator policies, not here."""
        if self.kind == "durable":
            return {"x-queue-type": "quorum"}
        return {"x-queue-type": "classic", "x-max-length": _BEST_EFFORT_LENGTH_MAX, "x-overflow": "drop-head"}


QUEUES: Final = (
    Queue("orchestrator.requests", ("session.requested",)),
    Queue("orchestrator.cancels", ("session.cancel_requested",)),
    Queue("results.endings", ("session.ended", "session.abandoned")),
    Queue("results.progress", ("session.progressed",), "best_effort"),
    Queue("gateway.results", ENDINGS),
    Queue("gateway.updates", ("result.updated",), "best_effort"),
    Queue("gateway.eligibility", ("eligibility.changed",)),
    Queue("billing.results", ENDINGS),
)


def queue_named(name: str) -> Queue:
    return next(queue for queue in QUEUES if queue.name == name)
