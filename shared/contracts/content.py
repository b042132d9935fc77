"""Turns, outputs, usage and errors, as every service words them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from shared.contracts.message import Contract

Outcome = Literal["completed", "incomplete", "failed", "refused", "cancelled"]
"""The terminal states of a request."""

WaitingOn = Literal[
    "session_turn", "account_concurrency", "eligibility", "provider_rate_limit", "retry_backoff", "capacity"
]

FinishReason = Literal["stop", "length", "content_filter", "tool_calls", "refusal", "cancelled", "deadline"]


class MessageItem(Contract):
    """One message of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "user", "assistant"]
    content: str


class RefusalItem(Contract):
    """The model declined; the text is its own."""

    type: Literal["refusal"] = "refusal"
    refusal: str


class FunctionCallItem(Contract):
    """The model asks the caller to run one of the tools it was offered."""

    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(Contract):
    """The caller's answer to a function call."""

    type: Literal["function_call_output"] = "function_call_output"
    call_id: str
    output: str


Item = Annotated[
    MessageItem | RefusalItem | FunctionCallItem | FunctionCallOutputItem,
    Field(discriminator="type"),
]


class Output(Contract):
    """What a request produced. Its text is the concatenation of all assistant text in `items`."""

    items: tuple[Item, ...]
    finish_reason: FinishReason

    @property
    def text(self) -> str:
        """Not a field: a message that carried it beside the items would be twice as large."""
        return "".join(item.content for item in self.items if item.type == "message")


class Usage(Contract):
    """Tokens as the provider counted them; `estimated` where it did not say."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class Failure(Contract):
    """Why a request has no full answer: a stable code and a sentence that is safe to show its owner."""

    code: str
    message: str


class CallSettings(Contract):
    """What a caller may say about how the model is to answer."""

    model: str = "default"
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    response_format: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()
