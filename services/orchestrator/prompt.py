"""What is sent to a model: the earlier turns and this one's input; and what that will cost, before anybody counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from shared.contracts.content import (
    CallSettings,
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    RefusalItem,
    Usage,
)

TOKENS_MAX: Final = 100_000_000
"""No model takes as many; billing's contract ends there."""

_BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True)
class Prompt:
    """The items in the order in which the model reads them, and how it is to answer."""

    items: tuple[Item, ...]
    settings: CallSettings
    max_output_tokens: int

    @cached_property
    def input_tokens(self) -> int:
        """An estimate: nobody has counted yet. Asked for at each step of a run, and a transcript may be long."""
        return tokens_of(_text_bytes(self.items, self.settings))

    @cached_property
    def tokens(self) -> int:
        """What one call may use at most, by the same estimate. Held at billing and reserved in the bucket."""
        return min(self.input_tokens + max(0, self.max_output_tokens), TOKENS_MAX)

    def estimated_usage(self, output_text_bytes: int) -> Usage:
        """For a call whose provider did not, or could no longer, say what it used."""
        return Usage(input_tokens=self.input_tokens, output_tokens=tokens_of(output_text_bytes), estimated=True)


def tokens_of(text_bytes: int) -> int:
    return -(-text_bytes // _BYTES_PER_TOKEN)


def prompt_of(earlier: Sequence[Item], turn: Sequence[Item], settings: CallSettings, default_max: int) -> Prompt:
    asked = settings.max_output_tokens
    return Prompt((*earlier, *turn), settings, default_max if asked is None else asked)


def _text_bytes(items: Iterable[Item], settings: CallSettings) -> int:
    total = sum(len(text.encode()) for item in items for text in _texts(item))
    total += len((settings.instructions or "").encode())
    total += len(json.dumps(settings.tools, ensure_ascii=False).encode()) if settings.tools else 0
    total += len(json.dumps(settings.response_format, ensure_ascii=False).encode()) if settings.response_format else 0
    return total


def _texts(item: Item) -> tuple[str, ...]:
    match item:
        case MessageItem():
            return (item.content,)
        case RefusalItem():
            return (item.refusal,)
        case FunctionCallItem():
            return (item.name, item.arguments)
        case FunctionCallOutputItem():
            return (item.output,)
