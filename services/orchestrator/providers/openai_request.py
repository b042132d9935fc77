"""A prompt as the body of OpenAI's Chat Completions."""

from __future__ import annotations

import json
from typing import Any

from services.orchestrator.prompt import Prompt
from shared.contracts.content import FunctionCallItem, FunctionCallOutputItem, Item, MessageItem, RefusalItem


def request_body(upstream_model: str, prompt: Prompt) -> bytes:
    settings = prompt.settings
    body: dict[str, Any] = {
        "model": upstream_model,
        "messages": _messages(prompt),
        "max_completion_tokens": prompt.max_output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.response_format is not None:
        body["response_format"] = _response_format(settings.response_format)
    if settings.tools:
        body["tools"] = [_tool(tool) for tool in settings.tools]
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if prompt.settings.instructions:
        messages.append({"role": "system", "content": prompt.settings.instructions})
    for item in prompt.items:
        message = _message(item)
        # Calls made in one breath belong to one assistant message; servers refuse them as several.
        if "tool_calls" in message and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
        else:
            messages.append(message)
    return messages


def _message(item: Item) -> dict[str, Any]:
    match item:
        case MessageItem():
            return {"role": item.role, "content": item.content}
        case RefusalItem():
            return {"role": "assistant", "content": item.refusal}
        case FunctionCallItem():
            function = {"name": item.name, "arguments": item.arguments}
            return {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": item.call_id, "type": "function", "function": function}],
            }
        case FunctionCallOutputItem():
            return {"role": "tool", "tool_call_id": item.call_id, "content": item.output}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """The Responses form is flat, the one of Chat Completions nested: both are accepted."""
    if tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _response_format(response_format: dict[str, Any]) -> dict[str, Any]:
    if response_format.get("type") != "json_schema" or "json_schema" in response_format:
        return response_format
    nested = {name: value for name, value in response_format.items() if name != "type"}
    return {"type": "json_schema", "json_schema": {"name": "answer", **nested}}
