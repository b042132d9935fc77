"""The LLM stand-in speaks Chat Completions as OpenAI does, byte for byte where a client could tell."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from deploy.local.standins.starting import Standin, standin
from tests.support.guard import GUARD_SECONDS

KEY = {"Authorization": "Bearer sk-test"}
FRAME_KEYS = {"id", "object", "created", "model", "service_tier", "system_fingerprint", "choices"}


@pytest.fixture(scope="module")
def llm() -> Iterator[Standin]:
    with standin("llm", "--seed", "7") as process:
        yield process


@pytest.fixture
async def api(llm: Standin) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=llm.url, headers=KEY, timeout=GUARD_SECONDS) as client:
        yield client


@pytest.fixture
async def control(llm: Standin) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=llm.control_url, timeout=1.5 * GUARD_SECONDS) as client:
        assert (await client.post("/reset")).status_code == 200
        yield client


def question(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "standin-1", "messages": [{"role": "user", "content": text}], **fields}


async def complete(api: httpx.AsyncClient, text: str, **fields: Any) -> dict[str, Any]:
    reply = await api.post("/v1/chat/completions", json=question(text, **fields))
    assert reply.status_code == 200, reply.text
    completion: dict[str, Any] = reply.json()
    return completion


async def frames(api: httpx.AsyncClient, text: str, **fields: Any) -> list[dict[str, Any]]:
    """Read a stream strictly: every event is one data line, and the last one is [DONE]."""
    reply = await api.post("/v1/chat/completions", json=question(text, stream=True, **fields))
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = reply.content.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(event.startswith(b"data: {") and b"\n" not in event for event in events)
    return [json.loads(event.removeprefix(b"data: ")) for event in events]


def assembled(read: list[dict[str, Any]], part: str = "content") -> str:
    return "".join(choice["delta"].get(part) or "" for frame in read for choice in frame["choices"])


async def rule(control: httpx.AsyncClient, *steps: dict[str, Any], **fields: Any) -> None:
    reply = await control.post("/rules", json={"rules": [{"steps": list(steps), **fields}]})
    assert reply.status_code == 200, reply.text


async def test_a_completion_has_every_field_a_client_reads(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    completion = await complete(api, "hello")
    assert completion["object"] == "chat.completion"
    assert completion["id"].startswith("chatcmpl-")
    choice = completion["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].startswith("You said: hello")
    usage = completion["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # The documented rule: 3, and 3 for the message, and ceil(5 / 4) for its text.
    assert usage["prompt_tokens"] == 8


async def test_the_same_question_always_has_the_same_answer(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    first, again, other = [(await complete(api, text))["choices"][0]["message"]["content"] for text in ("a", "a", "b")]
    assert first == again != other


async def test_the_frames_of_a_stream_follow_the_grammar(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    read = await frames(api, "hello", stream_options={"include_usage": True})
    first, *middle, finish, usage = read
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(list(frame["choices"][0]["delta"]) == ["content"] for frame in middle)
    assert len(middle) > 1
    assert finish["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] > 0
    assert all(frame["usage"] is None for frame in read[:-1])
    assert all(set(frame) == FRAME_KEYS | {"usage"} and frame["object"] == "chat.completion.chunk" for frame in read)
    assert len({(frame["id"], frame["created"], frame["model"]) for frame in read}) == 1
    assert assembled(read) == (await complete(api, "hello"))["choices"][0]["message"]["content"]


async def test_without_include_usage_no_frame_speaks_of_usage(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    assert all(set(frame) == FRAME_KEYS for frame in await frames(api, "hello"))


async def test_a_token_limit_cuts_the_answer_and_says_length(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    completion = await complete(api, "hello", max_completion_tokens=2)
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["choices"][0]["message"]["content"] == "You said"
    assert completion["usage"]["completion_tokens"] == 2


async def test_a_json_schema_is_answered_by_its_smallest_instance(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 6},
            "rating": {"type": "integer", "minimum": 3},
            "kind": {"enum": ["hot", "cold"]},
            "days": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/day"}},
            "note": {"anyOf": [{"type": "null"}, {"type": "string"}]},
        },
        "required": ["city", "rating", "kind", "days", "note"],
        "$defs": {"day": {"type": "object", "properties": {"sun": {"type": "boolean"}}, "required": ["sun"]}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "weather", "strict": True, "schema": schema}}
    content = (await complete(api, "weather", response_format=wanted))["choices"][0]["message"]["content"]
    assert json.loads(content) == {
        "city": "textxx",
        "rating": 3,
        "kind": "hot",
        "days": [{"sun": True}, {"sun": True}],
        "note": None,
    }


async def test_a_scripted_tool_call_streams_its_arguments_in_pieces(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    arguments = {"city": "Oslo", "days": [1, 2, 3], "unit": "celsius"}
    await rule(control, {"kind": "tool_calls", "tool_calls": [{"name": "weather", "arguments": arguments}]})
    read = await frames(api, "weather?")
    deltas = [c["delta"]["tool_calls"][0] for f in read for c in f["choices"] if "tool_calls" in c["delta"]]
    assert deltas[0]["type"] == "function"
    assert deltas[0]["id"].startswith("call_")
    assert deltas[0]["function"] == {"name": "weather", "arguments": ""}
    assert len(deltas) > 2
    assert json.loads("".join(d["function"]["arguments"] for d in deltas)) == arguments
    assert read[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_forced_tool_choice_calls_that_tool(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    choice = {"type": "function", "function": {"name": "weather"}}
    message = (await complete(api, "weather?", tools=tools, tool_choice=choice))["choices"][0]["message"]
    assert message["content"] is None
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "text"}


async def test_models_are_listed(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    listed = (await api.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert {model["object"] for model in listed["data"]} == {"model"}


async def test_every_reply_carries_the_rate_limit_headers_and_an_id(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    reply = await api.post("/v1/chat/completions", json=question("hello"))
    names = {f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")}
    assert names <= set(reply.headers)
    assert reply.headers["x-request-id"].startswith("req_")
    assert "date" in reply.headers


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"messages": [{"role": "user", "content": "x"}]}', 400, "model"),
        (b'{"model": "m", "messages": []}', 400, "messages"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "n": 2}', 400, "n"),
    ],
)
async def test_a_wrong_request_is_answered_as_openai_does(
    api: httpx.AsyncClient, control: httpx.AsyncClient, body: bytes, status: int, param: str | None
) -> None:
    reply = await api.post("/v1/chat/completions", content=body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


async def test_a_key_is_asked_for_and_can_be_required(llm: Standin, control: httpx.AsyncClient) -> None:
    async with httpx.AsyncClient(base_url=llm.url, timeout=GUARD_SECONDS) as api:
        keyless = await api.post("/v1/chat/completions", json=question("hello"))
        await control.put("/keys", json={"keys": ["sk-right"]})
        wrong, right = [
            await api.post("/v1/chat/completions", json=question("x"), headers={"Authorization": f"Bearer {key}"})
            for key in ("sk-wrong", "sk-right")
        ]
    assert (keyless.status_code, wrong.status_code, right.status_code) == (401, 401, 200)
    assert wrong.json()["error"]["code"] == "invalid_api_key"


async def test_the_log_keeps_a_call_without_its_key(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await complete(api, "hello [[case-1]]", temperature=0.5)
    listed = await control.get("/calls", params={"marker": "case-1"})
    assert "sk-test" not in listed.text
    (call,) = listed.json()["calls"]
    assert call["messages"] == [{"role": "user", "content": "hello [[case-1]]"}]
    assert call["params"] == {"model": "standin-1", "temperature": 0.5}
    assert (call["status"], call["outcome"]) == (200, "completed")
    assert len(call["key_hash"]) == 16
    assert call["arrived_at"] <= call["first_byte_at"] <= call["ended_at"]


async def test_an_enforced_limit_answers_429_with_the_wait(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await control.put("/limits", json={"requests_per_minute": 1, "enforce": True})
    replies = [await api.post("/v1/chat/completions", json=question("hello")) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert 30 <= int(replies[1].headers["retry-after"]) <= 60
    assert replies[1].headers["x-ratelimit-reset-requests"] in ("1m0s", *(f"{seconds}s" for seconds in range(30, 61)))
    assert replies[1].json()["error"]["code"] == "rate_limit_exceeded"
