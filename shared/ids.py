"""Ids: a prefix that names the kind and a UUIDv7, so that ids sort by the time they were made."""

from __future__ import annotations

import re
from typing import Final

import uuid_utils as uuid

_PATTERN: Final = re.compile(r"[a-z]{2,8}_[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """A fresh id such as `req_0192f3c4a1b27d3e8f90a1b2c3d4e5f6`: prefix, underscore, 32 hex digits."""
    return f"{prefix}_{uuid.uuid7().hex}"


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` has the form of an id of this kind; says nothing about its existence."""
    return text.startswith(f"{prefix}_") and _PATTERN.fullmatch(text) is not None


def random_hex() -> str:
    """32 hex digits that nobody has used before, for what needs no kind: epochs and the names of queues."""
    return uuid.uuid4().hex
