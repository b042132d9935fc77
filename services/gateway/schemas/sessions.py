"""Sessions and their transcripts."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field
from pydantic_core import to_json

from services.gateway.schemas.base import Incoming, Metadata, ModelName, Outgoing
from shared.contracts.content import Item


class CreateSession(Incoming):
    """A conversation: what every turn in it shares."""

    instructions: str | None = Field(default=None, max_length=65_536)
    model: ModelName = "default"
    metadata: Metadata = Field(default_factory=dict)

    def metadata_json(self) -> str:
        return to_json(self.metadata).decode()


class SessionView(Outgoing):
    """A session. It is `running` while one of its requests has the turn."""

    id: str
    status: Literal["idle", "running"]
    model: str
    instructions: str | None
    metadata: dict[str, str]
    open_requests: int
    created_at: datetime


class TranscriptEntry(Outgoing):
    """One item of a conversation, and the request it belongs to."""

    request_id: str
    seq: int
    item: Item
