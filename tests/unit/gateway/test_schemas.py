"""What a request body may say, and in which words it goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from services.gateway.schemas import CreateRequest, CreateSession, EventsQuery, ListQuery, RequestListQuery
from shared.contracts.content import CallSettings, FunctionCallOutputItem, MessageItem
from shared.errors import Problem
from shared.http import parse_model

FUNCTION = {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def parsed(**fields: Any) -> CreateRequest:
    return CreateRequest.model_validate({"input": "hello", **fields})


def nested(levels: int) -> dict[str, Any]:
    """So many objects, one inside the other."""
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"a": inner}
    return inner


def test_what_is_nested_as_deep_as_is_accepted_can_be_read_again() -> None:
    body = parsed(tools=[{"type": "function", "name": "a", "parameters": nested(64)}])
    assert CallSettings.model_validate_json(body.settings_json()).tools[0]["parameters"] == nested(64)


def test_text_is_a_message_of_the_user() -> None:
    assert parsed().items() == (MessageItem(role="user", content="hello"),)


def test_items_are_user_messages_and_outputs_of_function_calls() -> None:
    body = parsed(
        input=[
            {"role": "user", "content": "a"},
            {"type": "message", "role": "user", "content": "b"},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ]
    )
    assert body.items() == (
        MessageItem(role="user", content="a"),
        MessageItem(role="user", content="b"),
        FunctionCallOutputItem(call_id="c1", output="42"),
    )
    assert body.text_bytes() == 4


@pytest.mark.parametrize("tool", [{"type": "function", **FUNCTION}, {"type": "function", "function": FUNCTION}])
def test_a_tool_goes_on_in_its_flat_form(tool: dict[str, Any]) -> None:
    settings = CallSettings.model_validate_json(parsed(tools=[tool]).settings_json())
    assert settings.tools == ({"type": "function", **FUNCTION},)


@pytest.mark.parametrize(
    "sent",
    [
        {"type": "json_schema", "name": "n", "schema": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    ],
)
def test_a_schema_goes_on_in_its_flat_form(sent: dict[str, Any]) -> None:
    settings = CallSettings.model_validate_json(parsed(response_format=sent).settings_json())
    assert settings.response_format == {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}


def test_what_was_not_said_is_not_passed_on() -> None:
    assert json.loads(parsed().settings_json()) == {}


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": []},
        {"input": None},
        {"input": 7},
        {"input": ["hello"]},
        {"input": [{"role": "assistant", "content": "a"}]},
        {"input": [{"role": "system", "content": "a"}]},
        {"input": [{"type": "function_call", "call_id": "c", "name": "n", "arguments": "{}"}]},
        {"input": [{"role": "user", "content": "a", "extra": 1}]},
        {"input": [{"role": "user", "content": "a"}] * 1001},
        {"unknown": 1},
        {"model": ""},
        {"model": "a" * 129},
        {"model": "../etc"},
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"temperature": "1"},
        {"temperature": True},
        {"temperature": float("nan")},
        {"max_output_tokens": 0},
        {"max_output_tokens": 1.5},
        {"max_output_tokens": 1_000_001},
        {"deadline_seconds": 0},
        {"deadline_seconds": 86_401},
        {"metadata": {f"k{number}": "v" for number in range(17)}},
        {"metadata": {"k": 1}},
        {"metadata": {"k" * 65: "v"}},
        {"metadata": {"k": "v" * 513}},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "schema": []}},
        {"response_format": {"type": "text", "schema": {}}},
        {"response_format": "text"},
        {"response_format": {"type": "json_schema", "schema": {"maximum": float("inf")}}},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "function", "name": "a b"}]},
        {"response_format": {"type": "json_schema", "schema": nested(100)}},
        {"tools": [{"type": "function", "name": "a", "parameters": {"x": "y" * 70_000}}]},
        {"tools": [{"type": "function", "name": "a", "parameters": nested(65)}]},
        {"tools": [{"type": "function", "name": "a", "parameters": nested(400)}]},
        {"tools": [{"type": "function", "name": "a"}] * 2},
        {"tools": [{"type": "function", "name": f"t{number}"} for number in range(129)]},
        {"tools": [{"type": "web_search", "name": "a"}]},
    ],
)
def test_a_body_that_is_not_as_documented_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        parsed(**fields)


def test_a_session_has_the_default_model_and_no_room_for_surprises() -> None:
    assert CreateSession().model == "default"
    with pytest.raises(ValidationError):
        CreateSession.model_validate({"account_id": "acct_x"})


def test_query_strings_are_numbers_and_words_written_as_text() -> None:
    assert ListQuery.model_validate_strings({"limit": "7"}).limit == 7
    assert RequestListQuery.model_validate_strings({"status": "failed"}).status == "failed"
    assert EventsQuery.model_validate_strings({"after": "5", "wait": "60"}).after == 5


@pytest.mark.parametrize("query", [{"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"page": "2"}, {"cursor": ""}])
def test_a_query_string_that_is_not_as_documented_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ListQuery.model_validate_strings(query)


WRONG: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "no input": ({}, [{"path": "input", "message": "Field required"}]),
    "empty text": (
        {"input": ""},
        [{"path": "input", "message": "String should have at least 1 character"}],
    ),
    "a number": ({"input": 5}, [{"path": "input", "message": "Input is of no documented type"}]),
    "no items": (
        {"input": []},
        [{"path": "input", "message": "Array should have at least 1 item after validation, not 0"}],
    ),
    "an item without text": (
        {"input": [{"role": "user", "content": "a"}, {"role": "user"}]},
        [{"path": "input.1.content", "message": "Field required"}],
    ),
    "an item that is text": ({"input": ["a"]}, [{"path": "input.0", "message": "Input is of no documented type"}]),
    "an unknown field": (
        {"input": [{"role": "user", "content": "a", "colour": "b"}]},
        [{"path": "input.0.colour", "message": "Extra inputs are not permitted"}],
    ),
    "a nested tool without a name": (
        {"input": "a", "tools": [{"type": "function", "function": {}}]},
        [{"path": "tools.0.function.name", "message": "Field required"}],
    ),
    "a format without a schema": (
        {"input": "a", "response_format": {"type": "json_schema"}},
        [{"path": "response_format.schema", "message": "Field required"}],
    ),
    "two tools of one name": (
        {"input": "a", "tools": [{"type": "function", **FUNCTION}, {"type": "function", "function": FUNCTION}]},
        [{"path": "tools", "message": "two tools have the same name"}],
    ),
    "a schema nested without end": (
        {"input": "a", "response_format": {"type": "json_schema", "schema": nested(65)}},
        [{"path": "response_format.schema", "message": "must be nested at most 64 levels deep"}],
    ),
    "metadata that is a list": (
        {"input": "a", "metadata": []},
        [{"path": "metadata", "message": "Input should be a valid object"}],
    ),
    "a body that is text": ("a", [{"path": "", "message": "Input should be a valid object"}]),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_body_is_told_where_it_is_wrong_in_its_own_words(case: str) -> None:
    document, errors = WRONG[case]
    with pytest.raises(Problem) as caught:
        parse_model(json.dumps(document).encode(), CreateRequest)
    assert caught.value.extra == {"errors": errors}
