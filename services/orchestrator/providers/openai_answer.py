"""Puts an answer together from the chunks of a Chat Completions stream, or from one whole completion."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic_core import from_json

from services.orchestrator.providers.base import OnDelta, ProviderFailed, clean
from shared.contracts.content import FunctionCallItem, Item, MessageItem, Output, RefusalItem, Usage

TOOL_CALLS_MAX: Final = 128

FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "refusal"]

_FINISH: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class Malformed(Exception):
    """Not a Chat Completions chunk."""


class ErrorInStream(Exception):
    """The server reported an error after it had answered 200."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__("the stream carried an error object")
        self.error = error


@dataclass(slots=True)
class _ToolCall:
    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object, or Malformed. Broken UTF-8 inside it is replaced."""
    try:
        try:
            # Only keys are kept for the next time: values are somebody's text.
            parsed = from_json(data, cache_strings="keys")
        except ValueError:
            # Three times slower, and takes more: half a surrogate pair, bytes that are no UTF-8, deeper nesting.
            parsed = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise Malformed from None
    if not isinstance(parsed, dict):
        raise Malformed
    return parsed


class AnswerBuilder:
    """Fed with chunks in order; `output()` when the stream is over."""

    def __init__(self, on_delta: OnDelta, output_bytes_max: int) -> None:
        self._on_delta = on_delta
        self._bytes_left = output_bytes_max
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._tool_calls: dict[int, _ToolCall] = {}
        self._finish: FinishReason | None = None
        self.usage: Usage | None = None

    @property
    def finished(self) -> bool:
        """The provider said why it stopped: from here on only the usage may still come."""
        return self._finish is not None

    @property
    def begun(self) -> bool:
        return bool(self._text or self._refusal or self._tool_calls)

    def add_chunk(self, chunk: dict[str, Any], part: Literal["delta", "message"] = "delta") -> None:
        error = chunk.get("error")
        if error:
            raise ErrorInStream(error if isinstance(error, dict) else {})
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage)
        choices = chunk.get("choices", [])
        if not isinstance(choices, list):
            raise Malformed
        for choice in choices:
            if not isinstance(choice, dict):
                raise Malformed
            if choice.get("index", 0) == 0:
                self._add_choice(choice, choice.get(part) or {})

    def add_completion(self, completion: dict[str, Any]) -> None:
        """A server that answered with one JSON document although a stream was asked for."""
        self.add_chunk(completion, "message")
        self._finish = self._finish or "stop"

    def _add_choice(self, choice: dict[str, Any], delta: Any) -> None:
        if not isinstance(delta, dict):
            raise Malformed
        if content := delta.get("content"):
            self._add_text(content, self._text, "output.delta")
        if refusal := delta.get("refusal"):
            self._add_text(refusal, self._refusal, "refusal.delta")
        if tool_calls := delta.get("tool_calls"):
            self._add_tool_calls(tool_calls)
        reason = choice.get("finish_reason")
        if reason is not None:
            # Servers add words of their own ("eos", "end_turn"): each of them means that the model stopped.
            self._finish = _FINISH.get(str(reason), "stop")

    def _add_text(self, text: Any, into: list[str], kind: Literal["output.delta", "refusal.delta"]) -> None:
        if not isinstance(text, str):
            raise Malformed
        text = clean(text)
        self._count(text)
        into.append(text)
        self._on_delta(kind, text)

    def _add_tool_calls(self, tool_calls: Any) -> None:
        if not isinstance(tool_calls, list):
            raise Malformed
        for position, tool_call in enumerate(tool_calls):
            self._add_tool_call(position, tool_call)

    def _add_tool_call(self, position: int, delta: Any) -> None:
        function = delta.get("function") if isinstance(delta, dict) else None
        if not isinstance(function, dict):
            raise Malformed
        index = delta.get("index", position)
        if not isinstance(index, int) or not 0 <= index < TOOL_CALLS_MAX:
            raise Malformed
        call = self._tool_calls.setdefault(index, _ToolCall())
        # Id and name come once and whole, arguments in pieces.
        call.call_id = call.call_id or clean(str(delta.get("id") or ""))
        call.name = call.name or clean(str(function.get("name") or ""))
        arguments = clean(str(function.get("arguments") or ""))
        self._count(arguments)
        call.arguments.append(arguments)

    def _count(self, text: str) -> None:
        self._bytes_left -= len(text.encode())
        if self._bytes_left < 0:
            raise ProviderFailed("too_large", http_status=200)

    def output(self) -> Output:
        """What came, in items. A refusal is one whatever the finish reason says."""
        text = "".join(self._text)
        items: list[Item] = [MessageItem(role="assistant", content=text)] if text else []
        if self._refusal:
            items.append(RefusalItem(refusal="".join(self._refusal)))
        items.extend(
            FunctionCallItem(call_id=call.call_id or f"call_{index}", name=call.name, arguments="".join(call.arguments))
            for index, call in sorted(self._tool_calls.items())
        )
        return Output(items=tuple(items), finish_reason=self._reason())

    def _reason(self) -> FinishReason:
        if self._finish in ("length", "content_filter"):
            return self._finish
        if self._refusal:
            return "refusal"
        return "tool_calls" if self._tool_calls else self._finish or "stop"


def _usage(usage: dict[str, Any]) -> Usage | None:
    """None where the numbers are not usable: an estimate is better than a made-up zero."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    numbers = (usage.get("prompt_tokens"), usage.get("completion_tokens"), cached or 0)
    if not all(isinstance(number, int) and 0 <= number < 2**31 for number in numbers):
        return None
    return Usage(input_tokens=numbers[0], output_tokens=numbers[1], cached_input_tokens=numbers[2])
