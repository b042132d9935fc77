"""Answers put together from chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.orchestrator.providers.base import ProviderFailed
from services.orchestrator.providers.openai_answer import AnswerBuilder, ErrorInStream, Malformed, parse_object
from shared.contracts.content import FunctionCallItem, RefusalItem


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": finish}], **fields}


def built(*chunks: dict[str, Any], output_bytes_max: int = 1000) -> tuple[AnswerBuilder, list[tuple[str, str]]]:
    deltas: list[tuple[str, str]] = []
    builder = AnswerBuilder(lambda kind, text: deltas.append((kind, text)), output_bytes_max)
    for one in chunks:
        builder.add_chunk(one)
    return builder, deltas


def test_text_is_put_together_and_passed_on_as_it_comes() -> None:
    builder, deltas = built(
        chunk({"role": "assistant", "content": ""}), chunk({"content": "Hel"}), chunk({"content": "lo"})
    )
    assert not builder.finished
    builder.add_chunk(chunk(finish="stop"))
    assert builder.finished
    assert builder.output().text == "Hello"
    assert deltas == [("output.delta", "Hel"), ("output.delta", "lo")]


@pytest.mark.parametrize("tool_calls", [7, True, "x", {"index": 0}, [None]])
def test_tool_calls_that_are_no_list_of_calls_are_malformed(tool_calls: Any) -> None:
    with pytest.raises(Malformed):
        built(chunk({"tool_calls": tool_calls}))


def test_a_refusal_is_an_item_of_its_own_and_no_text() -> None:
    builder, deltas = built(chunk({"refusal": "I "}), chunk({"refusal": "cannot."}), chunk(finish="stop"))
    output = builder.output()
    assert (output.text, output.finish_reason) == ("", "refusal")
    assert output.items == (RefusalItem(refusal="I cannot."),)
    assert deltas[0] == ("refusal.delta", "I ")


def test_tool_calls_are_put_together_by_their_index() -> None:
    def part(index: int, **fields: Any) -> dict[str, Any]:
        return {"index": index, **fields}

    first = part(0, id="call_a", function={"name": "find", "arguments": ""})
    second = part(1, id="call_b", function={"name": "read", "arguments": '{"x"'})
    builder, _ = built(
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [second]}),
        chunk({"tool_calls": [part(0, function={"arguments": "{}"}), part(1, function={"arguments": ":1}"})]}),
        chunk(finish="tool_calls"),
    )
    output = builder.output()
    assert output.finish_reason == "tool_calls"
    assert output.items == (
        FunctionCallItem(call_id="call_a", name="find", arguments="{}"),
        FunctionCallItem(call_id="call_b", name="read", arguments='{"x":1}'),
    )


def test_a_server_that_forgets_index_and_id_still_makes_a_call() -> None:
    builder, _ = built(chunk({"tool_calls": [{"function": {"name": "find", "arguments": "{}"}}]}), chunk(finish="stop"))
    assert builder.output().items == (FunctionCallItem(call_id="call_0", name="find", arguments="{}"),)
    assert builder.output().finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("eos", "stop"),
        ("end_turn", "stop"),
    ],
)
def test_finish_reasons_are_mapped(said: str, meant: str) -> None:
    assert built(chunk({"content": "x"}), chunk(finish=said))[0].output().finish_reason == meant


def test_usage_is_read_wherever_it_comes() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 2}}
    builder, _ = built(chunk({"content": "x"}), {"choices": [], "usage": usage})
    assert builder.usage is not None
    assert (builder.usage.input_tokens, builder.usage.output_tokens, builder.usage.cached_input_tokens) == (5, 7, 2)


@pytest.mark.parametrize(
    "usage", [{}, {"prompt_tokens": "5", "completion_tokens": 1}, {"prompt_tokens": -1, "completion_tokens": 1}]
)
def test_usage_that_makes_no_sense_is_none(usage: dict[str, Any]) -> None:
    assert built({"choices": [], "usage": usage})[0].usage is None


def test_only_the_first_choice_counts() -> None:
    other = {"choices": [{"index": 1, "delta": {"content": "no"}}]}
    assert built(chunk({"content": "yes"}), other)[0].output().text == "yes"


def test_text_that_cannot_be_stored_is_replaced() -> None:
    builder, deltas = built(chunk(json.loads('{"content": "a\\u0000b\\ud800c"}')))
    assert builder.output().text == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"
    assert deltas == [("output.delta", builder.output().text)]


def test_output_beyond_the_limit_is_a_failure_of_its_kind() -> None:
    with pytest.raises(ProviderFailed) as failure:
        built(chunk({"content": "x" * 600}), chunk({"content": "x" * 600}))
    assert failure.value.kind == "too_large"


def test_an_error_object_in_the_stream_is_one() -> None:
    with pytest.raises(ErrorInStream):
        built({"error": {"code": "server_error"}})


@pytest.mark.parametrize(
    "broken",
    [
        {"choices": "x"},
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        chunk({"content": 5}),
        chunk({"tool_calls": ["x"]}),
        chunk({"tool_calls": [{"index": "x", "function": {}}]}),
        chunk({"tool_calls": [{"index": 10_000, "function": {}}]}),
    ],
)
def test_what_is_not_a_chunk_is_malformed(broken: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        built(broken)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"5", b"null", b"[" * 100_000, b"\xef\xbb\xbf{}", b'{"a": 1}{'])
def test_what_is_not_an_object_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_object(data)


def test_broken_utf8_inside_an_object_is_replaced() -> None:
    assert parse_object(b'{"a": "\xff"}') == {"a": "\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize(
    "data",
    [
        rb'{"a": "\ud83d\ude00 \u0000 \u2028", "a": [1, -0.5e3, true, null]}',
        rb'{"a": "\ud800"}',
        b'{"a": [NaN, -Infinity, 1e999, 123456789012345678901234567890]}',
        b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}",
        b' \n{"": {}}\t',
    ],
    ids=["plain", "half a pair", "numbers", "deep", "blanks"],
)
def test_an_object_is_read_as_the_standard_library_reads_it(data: bytes) -> None:
    assert repr(parse_object(data)) == repr(json.loads(data))


def test_a_whole_completion_is_as_good_as_a_stream() -> None:
    builder, deltas = built()
    builder.add_completion({"choices": [{"index": 0, "message": {"content": "Hi."}, "finish_reason": "stop"}]})
    assert (builder.output().text, deltas) == ("Hi.", [("output.delta", "Hi.")])
