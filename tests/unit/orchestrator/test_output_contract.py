"""Whether an answer keeps the response format that was asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from services.orchestrator.output_contract import (
    BadResponseFormat,
    broken_rule,
    check_response_format,
    off_loop,
    schema_of,
)
from tests.support.guard import GUARD_SECONDS

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def nested(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def test_free_text_has_no_schema() -> None:
    assert schema_of(None) is None
    assert schema_of({"type": "text"}) is None


def test_both_forms_of_a_schema_are_read() -> None:
    assert schema_of(nested(PERSON)) == PERSON
    assert schema_of({"type": "json_schema", "name": "x", "schema": PERSON}) == PERSON


def test_a_usable_format_passes() -> None:
    check_response_format(None)
    check_response_format(nested(PERSON))


def test_plain_json_must_be_an_object() -> None:
    schema = schema_of({"type": "json_object"})
    assert schema is not None
    assert broken_rule(schema, "{}") is None
    assert broken_rule(schema, "[]") == "$ breaks type"


@pytest.mark.parametrize(
    "response_format",
    [
        {"type": "xml"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"schema": "x"}},
        {"type": "json_schema", "json_schema": "x"},
        nested({"type": "no-such-type"}),
        nested({"properties": []}),
        nested({"description": "x" * 200_000}),
    ],
)
def test_a_format_that_cannot_be_checked_is_refused(response_format: dict[str, Any]) -> None:
    with pytest.raises(BadResponseFormat):
        check_response_format(response_format)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ('{"name": "Ann", "age": 3}', None),
        ('{"name": "Ann"}', "$ breaks required"),
        ('{"name": "Ann", "age": -1}', "$.age breaks minimum"),
        ('{"name": "Ann", "age": 3, "x": 1}', "$ breaks additionalProperties"),
        ("not json", "the output is not JSON"),
        ('```json\n{"name": "Ann", "age": 3}\n```', "the output is not JSON"),
        ("[" * 100_000, "the output is not JSON"),
    ],
)
def test_what_an_output_breaks_is_named_without_its_values(text: str, broken: str | None) -> None:
    assert broken_rule(PERSON, text) == broken


def test_a_reference_inside_the_schema_is_followed() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}
    assert broken_rule(schema, '{"a": 1}') is None
    assert broken_rule(schema, '{"a": "x"}') == "$.a breaks type"


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/schema.json", "file:///etc/passwd", "#/$defs/missing"])
def test_a_reference_to_anything_else_is_not_fetched(reference: str) -> None:
    with pytest.raises(BadResponseFormat):
        broken_rule({"$ref": reference}, "{}")


def test_a_regular_expression_from_outside_is_never_run() -> None:
    # This one would take longer than the age of the universe.
    schema: dict[str, Any] = {"type": "string", "pattern": "^(a+)+$"}
    assert broken_rule(schema, '"' + "a" * 64 + '!"') is None
    schema = {"patternProperties": {"^(a+)+$": {"type": "string"}}, "additionalProperties": False}
    assert broken_rule(schema, '{"' + "a" * 64 + '!": 1}') is None
    dialect = "https://json-schema.org/draft/2020-12/schema"
    schema = {"properties": {"a": {"$schema": dialect, "type": "string", "pattern": "^(a+)+$"}}}
    assert broken_rule(schema, '{"a": "' + "a" * 64 + '!"}') is None
    assert broken_rule(schema, '{"a": 1}') == "$.a breaks type"


def test_a_schema_that_branches_for_ever_is_given_up() -> None:
    definitions: dict[str, Any] = {
        f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"$ref": f"#/$defs/d{n + 1}"}]} for n in range(40)
    }
    schema = {"$defs": {**definitions, "d40": {"type": "object"}}, "$ref": "#/$defs/d0"}
    with pytest.raises(BadResponseFormat):
        broken_rule(schema, "{}")


def test_a_regular_expression_that_python_cannot_compile_is_no_error_of_ours() -> None:
    check_response_format(nested({"type": "string", "pattern": "a{99999999999}"}))


def test_entries_that_must_differ_are_compared_as_json_does() -> None:
    schema: dict[str, Any] = {"uniqueItems": True}
    for text in ("[1, true]", "[0, false]", '[{"a": 1}, {"a": 2}]', "[[1], [1, 1]]", '["1", 1]', "{}", "[null]"):
        assert broken_rule(schema, text) is None, text
    for text in ("[1, 1.0]", '[{"a": 1, "b": 2}, {"b": 2, "a": 1.0}]', "[[true], [true]]", '["a", 1, "a"]'):
        assert broken_rule(schema, text) == "$ breaks uniqueItems", text
    assert broken_rule({"uniqueItems": False}, "[1, 1]") is None


MANY: list[Any] = ["a", *range(10_000, 19_000)]
"""Of two kinds, so that nobody can sort them."""


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_response_format(nested({"type": MANY})),
        lambda: check_response_format(nested({"properties": {"a": {"required": [str(one) for one in MANY]}}})),
        lambda: broken_rule({"uniqueItems": True}, json.dumps(MANY)),
        lambda: broken_rule({"items": {"enum": MANY}}, json.dumps([MANY[-1]] * 20_000)),
        lambda: broken_rule({"items": {"required": MANY[1:]}}, json.dumps([{}] * 20_000)),
    ],
)
def test_no_check_takes_more_than_a_moment(check: Callable[[], object]) -> None:
    began = time.process_time()
    with contextlib.suppress(BadResponseFormat):
        check()
    assert time.process_time() - began < 3


async def test_the_loop_goes_on_while_a_format_is_checked() -> None:
    """The check ends when the loop says so: it never would if the loop waited for it."""
    said = threading.Event()
    checking = asyncio.create_task(off_loop(said.wait, GUARD_SECONDS))
    await asyncio.sleep(0)
    said.set()
    assert await checking


def test_a_schema_that_refers_to_itself_is_given_up() -> None:
    with pytest.raises(BadResponseFormat):
        broken_rule({"$ref": "#"}, "{}")
