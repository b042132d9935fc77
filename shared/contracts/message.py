"""What every message is: frozen data, a type that is also its routing key, and a deterministic id."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema


class Contract(BaseModel):
    """Frozen data that crosses a service boundary. Readers ignore fields they do not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(Contract):
    """A message on the bus; carried as a CloudEvent whose `subject` is the request (or account) it is about."""

    type: ClassVar[str]
    source: ClassVar[str]
    queues: ClassVar[tuple[str, ...]]
    """The queues that must have it. Published mandatory where this is not empty."""
    best_effort: ClassVar[bool] = False
    """Unconfirmed, on transient queues; losing one is repaired by a later message."""

    traceparent: SkipJsonSchema[str | None] = Field(default=None, exclude_if=lambda value: value is None)
    """The step of its request's trace that it belongs under, while traces are taken: a header on the bus and no part of
    the body there, but kept in rows with the rest, so that work that is resumed continues its trace."""

    @property
    def subject(self) -> str:
        raise NotImplementedError

    @property
    def id(self) -> str:
        """The same for every publish of the same fact, so that subscribers drop duplicates by it."""
        return f"{self.type}:{self.subject}"
