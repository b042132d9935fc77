"""One provider call: what was asked, and what became of it, with stamps of the system's monotonic clock."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MARKER = re.compile(r"\[\[([^\[\]\s]{1,100})\]\]")
# Above this a finished call's body is logged by its size and hash alone, so that the log of a load run stays small.
LOGGED_BODY_BYTES_MAX = 64 * 1024
_SECRET_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "cookie"})


@dataclass(slots=True)
class Call:
    number: int
    headers: dict[str, str]
    key_hash: str | None
    arrived_at: float = field(default_factory=time.monotonic)
    body: dict[str, Any] = field(default_factory=dict)
    body_bytes: int = 0
    body_sha256: str | None = None
    last_user_text: str = ""
    marker: str | None = None
    rule: int | None = None
    behaviour: str = "ok"
    status: int | None = None
    outcome: str = "running"
    logged: bool = True
    frames_sent: int = 0
    first_byte_at: float | None = None
    ended_at: float | None = None

    @property
    def key(self) -> str:
        """What makes two calls the same piece of work: the marker, or else the text."""
        return self.marker or hashlib.sha256(self.last_user_text.encode("utf-8", "replace")).hexdigest()

    def read(self, body: dict[str, Any], raw: bytes) -> None:
        self.body, self.body_bytes = body, len(raw)
        if len(raw) > LOGGED_BODY_BYTES_MAX:
            self.body_sha256 = hashlib.sha256(raw).hexdigest()
        self.last_user_text = last_user_text(body.get("messages"))
        found = _MARKER.search(self.last_user_text)
        self.marker = found[1] if found else None

    def shrink(self) -> int:
        """Give up a large body once the call has ended; tells the bytes still kept."""
        self.last_user_text = ""
        if self.body_sha256 is None:
            return self.body_bytes
        kept = {name: self.body.get(name) for name in ("model", "stream")}
        self.body = kept | {"omitted_bytes": self.body_bytes, "sha256": self.body_sha256}
        self.body_bytes = 0
        return 0

    def view(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "marker": self.marker,
            "model": self.body.get("model"),
            "stream": bool(self.body.get("stream")),
            "status": self.status,
            "outcome": self.outcome,
            "behaviour": self.behaviour,
            "rule": self.rule,
            "frames_sent": self.frames_sent,
            "arrived_at": self.arrived_at,
            "first_byte_at": self.first_byte_at,
            "ended_at": self.ended_at,
            "key_hash": self.key_hash,
            "headers": self.headers,
            "messages": self.body.get("messages"),
            "params": {name: value for name, value in self.body.items() if name != "messages"},
        }


def text_of(content: object) -> str:
    """A message's content is text, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def last_user_text(messages: object) -> str:
    if not isinstance(messages, list):
        return ""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def safe_headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _SECRET_HEADERS}


def hash_of_key(authorization: str | None) -> str | None:
    """The first 16 hex digits of the key's SHA-256, so that a test can tell keys apart without seeing one."""
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        return None
    return hashlib.sha256(key.strip().encode()).hexdigest()[:16]


def messages_text(body: Mapping[str, Any]) -> str:
    return json.dumps(body.get("messages"), ensure_ascii=False)
