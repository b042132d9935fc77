"""The request headers with a grammar of their own: Idempotency-Key, Prefer, If-None-Match, Last-Event-ID."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from shared.errors import Problem

WAIT_SECONDS_MAX: Final = 60
IDEMPOTENCY_KEY_LENGTH_MAX: Final = 255
CURSOR_MAX: Final = 2**63 - 1

_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
_QUOTED: Final = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED: Final = re.compile(r'\\(["\\])')
_WAIT: Final = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?:;.*)?', re.IGNORECASE)
_ENTITY_TAG: Final = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def parse_idempotency_key(values: Sequence[str]) -> str | None:
    """The key of a request's Idempotency-Key headers: a quoted string or bare text, the same key either way."""
    if not values:
        return None
    if len(values) > 1:
        raise _invalid_key("Send the Idempotency-Key header once.")
    text = values[0].strip()
    if text.startswith('"'):
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            raise _invalid_key("A quoted Idempotency-Key is printable ASCII between two quotes; escape quotes with \\.")
        text = _ESCAPED.sub(r"\1", quoted[1])
    if not _PRINTABLE.fullmatch(text) or len(text) > IDEMPOTENCY_KEY_LENGTH_MAX:
        raise _invalid_key(f"An Idempotency-Key is 1 to {IDEMPOTENCY_KEY_LENGTH_MAX} printable ASCII characters.")
    return text


def parse_wait_preference(values: Sequence[str]) -> int | None:
    """The seconds in `Prefer: wait=N`, at most 60; None where it is not asked for or not understood (RFC 7240)."""
    for preference in ",".join(values).split(","):
        match = _WAIT.fullmatch(preference)
        if match:
            return min(int(match[1]), WAIT_SECONDS_MAX)
    return None


def etag_matches(values: Sequence[str], etag: str) -> bool:
    """Whether If-None-Match names `etag` or is `*`; compared weakly, as RFC 9110 asks for this header."""
    joined = ",".join(values)
    return joined.strip() == "*" or etag in _ENTITY_TAG.findall(joined)


def parse_last_event_id(values: Sequence[str]) -> int | None:
    """The cursor an event stream resumes after."""
    if not values:
        return None
    text = values[0].strip()
    if len(values) > 1 or not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > CURSOR_MAX:
        raise Problem(400, "invalid_last_event_id", "Last-Event-ID is the id of the last event seen: a number from 0.")
    return int(text)


def _invalid_key(detail: str) -> Problem:
    return Problem(400, "invalid_idempotency_key", detail)
