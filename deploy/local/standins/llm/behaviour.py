"""What one call is to do: the kind of fault, its timing and, where the script says so, its text."""

from dataclasses import field
from typing import Any, Literal

from pydantic.dataclasses import dataclass

Kind = Literal[
    "ok",
    "status",  # an HTTP error: status, headers, error or body, retry_after_*
    "redirect",  # to `location`
    "drop",  # the connection is reset before any byte of the reply
    "cut",  # after `after_chunks` the connection is reset, or closed with cut_how "close"
    "eof",  # an orderly end of the body after `after_chunks` (all by default), without [DONE]
    "stall",  # silent after `after_chunks` until the gate opens, stall_ms pass, or the client leaves
    "bad_json",  # frame number `after_chunks` is not JSON
    "bad_framing",  # after `after_chunks` the chunked encoding itself is broken
    "wrong_type",  # status 200 with a page of HTML
    "stream_error",  # after `after_chunks` an error object inside the stream, as a 200
    "refusal",
    "content_filter",
    "length",
    "empty",
    "huge",  # huge_bytes of text
    "odd_text",  # U+0000, lone surrogates, U+2028, U+2029, U+0085
    "tool_calls",  # tool_calls, or one call of the first tool offered
]
_WIRE_KINDS = frozenset({"cut", "eof", "stall", "bad_json", "bad_framing", "stream_error"})
_HUGE_BYTES_MAX = 64 * 1024 * 1024
_STATUS_OF_KIND = {"status": 500, "redirect": 307}


@dataclass(frozen=True, slots=True, config={"extra": "forbid", "strict": True})
class Behaviour:
    """Chunks are counted in frames of the stream: the first carries the role, the last is `[DONE]`."""

    kind: Kind = "ok"
    first_byte_ms: float = 0
    first_token_ms: float = 0
    between_chunks_ms: float = 0
    after_chunks: int | None = None
    stall_ms: float | None = None
    gate: str | None = None
    cut_how: Literal["reset", "close"] = "reset"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    body: str | None = None
    retry_after_seconds: float | None = None
    retry_after_date_seconds: int | None = None
    date_skew_seconds: int = 0
    location: str = "http://127.0.0.1:1/v1/chat/completions"
    text: str | None = None
    pieces: list[str] | None = None
    words: int | None = None
    huge_bytes: int = 4 * 1024 * 1024
    tool_calls: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    crlf: bool = False
    comments: bool = False
    http_chunk_bytes: int | None = None

    def __post_init__(self) -> None:
        counts = (self.after_chunks or 0, self.words or 0)
        if min(self.first_byte_ms, self.first_token_ms, self.between_chunks_ms, *counts) < 0:
            raise ValueError("times and counts must not be negative")
        if not 0 <= self.huge_bytes <= _HUGE_BYTES_MAX:
            raise ValueError(f"huge_bytes must be 0 to {_HUGE_BYTES_MAX}")
        if self.http_chunk_bytes is not None and self.http_chunk_bytes < 1:
            raise ValueError("http_chunk_bytes must be at least 1")

    @property
    def http_status(self) -> int:
        return self.status or _STATUS_OF_KIND.get(self.kind, 200)

    @property
    def sent_whole(self) -> bool:
        """Nothing happens between two frames, so all of them can go out at once."""
        odd = self.first_token_ms or self.between_chunks_ms or self.crlf or self.comments or self.http_chunk_bytes
        return self.kind not in _WIRE_KINDS and not odd

    @property
    def cut_point(self) -> int:
        """Frames sent before a fault of the wire; by default the role and one piece of text."""
        return 2 if self.after_chunks is None else self.after_chunks


DEFAULT = Behaviour()
