"""Prompts as bodies of Chat Completions, and error replies as kinds of failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.orchestrator.prompt import prompt_of
from services.orchestrator.providers.base import ProviderFailed
from services.orchestrator.providers.openai_errors import code_of, error_object, kind_in_stream, kind_of_status
from services.orchestrator.providers.openai_request import request_body
from shared.contracts.content import (
    CallSettings,
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    RefusalItem,
)


def body(*items: Item, **settings: Any) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(request_body("m-1", prompt_of((), items, CallSettings(**settings), 50)))
    return parsed


def test_a_plain_turn_asks_for_a_stream_with_usage() -> None:
    assert body(MessageItem(role="user", content="hi"), instructions="Be brief.", temperature=0.5) == {
        "model": "m-1",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "max_completion_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
    }


def test_calls_of_one_breath_are_one_message_and_their_outputs_follow() -> None:
    messages = body(
        MessageItem(role="user", content="hi"),
        MessageItem(role="assistant", content="Let me look."),
        FunctionCallItem(call_id="a", name="f", arguments="{}"),
        FunctionCallItem(call_id="b", name="g", arguments="{}"),
        FunctionCallOutputItem(call_id="a", output="1"),
        FunctionCallOutputItem(call_id="b", output="2"),
        FunctionCallItem(call_id="c", name="f", arguments="{}"),
    )["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == ["a", "b"]
    assert messages[1]["content"] == "Let me look."
    assert messages[2] == {"role": "tool", "tool_call_id": "a", "content": "1"}
    assert messages[4]["content"] is None


def test_an_earlier_refusal_is_told_as_what_the_model_said() -> None:
    assert body(RefusalItem(refusal="No."))["messages"] == [{"role": "assistant", "content": "No."}]


def test_both_forms_of_a_tool_are_sent_in_the_nested_one() -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    nested = {"type": "function", "function": function}
    assert body(tools=({"type": "function", **function}, nested))["tools"] == [nested, nested]


def test_both_forms_of_a_response_format_are_sent_in_the_nested_one() -> None:
    nested = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
    assert body(response_format={"type": "json_schema", "name": "x", "schema": {}})["response_format"] == nested
    assert body(response_format=nested)["response_format"] == nested
    assert body(response_format={"type": "json_object"})["response_format"] == {"type": "json_object"}


def test_the_order_of_a_schemas_keys_is_kept() -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"z": {}, "a": {}}}}}
    assert list(body(tools=(tool,))["tools"][0]["function"]["parameters"]["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (429, {}, "rate_limited"),
        (429, {"code": "rate_limit_exceeded"}, "rate_limited"),
        (429, {"code": "slow_down", "type": "rate_limit_error"}, "rate_limited"),
        (429, {"code": "insufficient_quota"}, "quota_exhausted"),
        (429, {"code": "credit_balance_exhausted"}, "quota_exhausted"),
        (429, {"code": None, "type": "insufficient_quota"}, "quota_exhausted"),
        (402, {}, "quota_exhausted"),
        (401, {}, "unauthorized"),
        (403, {}, "unauthorized"),
        (404, {}, "not_found"),
        (408, {}, "timed_out"),
        (409, {}, "server_error"),
        (400, {}, "rejected"),
        (413, {}, "rejected"),
        (422, {}, "rejected"),
        (500, {}, "server_error"),
        (503, {"code": "server_is_overloaded"}, "server_error"),
        (529, {}, "server_error"),
        (302, {}, "malformed"),
        (204, {}, "malformed"),
    ],
)
def test_error_replies_are_told_apart(status: int, error: dict[str, Any], kind: str) -> None:
    assert kind_of_status(status, error) == kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "rate_limit_exceeded"}, "rate_limited"),
        ({"type": "insufficient_quota"}, "quota_exhausted"),
        ({"type": "invalid_request_error"}, "rejected"),
        ({"code": "server_error"}, "server_error"),
        ({}, "server_error"),
    ],
)
def test_errors_inside_a_stream_are_told_apart(error: dict[str, Any], kind: str) -> None:
    assert kind_in_stream(error) == kind


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b'{"error": "x"}', b'{"error": null}'])
def test_a_body_without_an_error_object_has_an_empty_one(raw: bytes) -> None:
    assert error_object(raw) == {}
    assert code_of(error_object(raw)) is None


def test_a_code_that_may_be_any_text_is_not_kept() -> None:
    assert ProviderFailed("rejected", error_code="context_length_exceeded").error_code == "context_length_exceeded"
    assert ProviderFailed("rejected", error_code="Incorrect API key provided: sk-123").error_code is None
