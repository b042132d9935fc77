"""What all bodies and query strings share: strict and bounded on the way in, explicit on the way out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.gateway.pagination import CURSOR_LENGTH_MAX

TEXT_LENGTH_MAX: Final = 16 * 1024 * 1024
JSON_LENGTH_MAX: Final = 64 * 1024
JSON_DEPTH_MAX: Final = 64
"""Far less than what the parsers of messages and rows give up at: what is accepted here must pass them all."""
METADATA_PAIRS_MAX: Final = 16


class Incoming(BaseModel):
    """What a client sends: unknown fields are refused and no type is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Outgoing(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(frozen=True)


def _check_nesting_and_numbers(value: object) -> None:
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        if not all(math.isfinite(entry) for entry in level if isinstance(entry, float)):
            raise ValueError("numbers must be finite")
        level = [inner for entry in level for inner in _entries(entry)]
        if not level:
            return
    raise ValueError(f"must be nested at most {JSON_DEPTH_MAX} levels deep")


def _entries(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _bounded_json(value: dict[str, Any]) -> dict[str, Any]:
    _check_nesting_and_numbers(value)
    if len(json.dumps(value)) > JSON_LENGTH_MAX:
        raise ValueError(f"must be at most {JSON_LENGTH_MAX} characters as JSON")
    return value


JsonObject: TypeAlias = Annotated[dict[str, Any], AfterValidator(_bounded_json)]
ModelName: TypeAlias = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")]
ToolName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Metadata: TypeAlias = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=METADATA_PAIRS_MAX),
]
Url: TypeAlias = Annotated[str, Field(min_length=8, max_length=2000, pattern=r"^https?://[^\s]+$")]
Text: TypeAlias = Annotated[str, Field(min_length=1, max_length=TEXT_LENGTH_MAX)]


class Nothing(Incoming):
    """No body, or no query string."""


class ListQuery(Incoming):
    """A page of a list, newest first."""

    limit: int = Field(default=20, ge=1, le=100)
    cursor: str | None = Field(default=None, min_length=1, max_length=CURSOR_LENGTH_MAX)


Entry = TypeVar("Entry")


class Page(Outgoing, Generic[Entry]):
    """One page of a list; `next` is the cursor of the page after it, null on the last."""

    data: tuple[Entry, ...]
    next: str | None
