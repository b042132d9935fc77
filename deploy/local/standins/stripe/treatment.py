"""How one event is to be delivered: what is signed, with which secrets, how often and how late."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

from deploy.local.standins.stripe import signing

Event = dict[str, Any]
COPIES_MAX = 100


@dataclass(slots=True)
class Settings:
    url: str | None = None
    secret: str = "whsec_standin"
    attempts_max: int = 5
    retry_ms: float = 200
    timeout_seconds: float = 10
    parallel: int = 1
    hold: bool = False  # events wait until released, in the order then asked for


@dataclass(frozen=True, slots=True)
class EventMatch:
    type: str | None = None
    object_id: str | None = None
    customer: str | None = None

    def holds(self, event: Event) -> bool:
        item = event["data"]["object"]
        return (
            (self.type is None or self.type == event["type"])
            and (self.object_id is None or self.object_id == item.get("id"))
            and (self.customer is None or self.customer in (item.get("customer"), item.get("id")))
        )


@dataclass(frozen=True, slots=True)
class Treatment:
    """How one event is delivered. `object` is merged into the payload's object, so it may contradict the API."""

    copies: int = 1
    drop: bool = False
    delay_ms: float = 0
    hold: bool = False
    wrong_signature: bool = False
    no_signature: bool = False
    secrets: list[str] | None = None
    timestamp_offset_seconds: int = 0
    object: dict[str, Any] = field(default_factory=dict)
    event: dict[str, Any] = field(default_factory=dict)
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.copies <= COPIES_MAX:
            raise ValueError(f"copies must be 1 to {COPIES_MAX}")


def signed(event: Event, treatment: Treatment, secret: str) -> tuple[bytes, dict[str, str]]:
    """The body and headers of one delivery, signed over exactly these bytes and this moment."""
    event = event | {"data": event["data"] | {"object": event["data"]["object"] | treatment.object}}
    text = json.dumps(event | treatment.event, indent=2) if treatment.body is None else treatment.body
    body = text.encode("utf-8", "surrogateescape")
    secrets = ["whsec_of_somebody_else"] if treatment.wrong_signature else treatment.secrets or [secret]
    headers = {"Content-Type": "application/json; charset=utf-8", "User-Agent": "Stripe/1.0"}
    if not treatment.no_signature:
        timestamp = int(time.time()) + treatment.timestamp_offset_seconds
        headers["Stripe-Signature"] = signing.header(body, secrets, timestamp)
    return body, headers | treatment.headers
