"""The OpenAI provider against a process that speaks the real wire format, one fault at a time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr

from deploy.local.standins.starting import Standin
from services.orchestrator.prompt import prompt_of
from services.orchestrator.providers.base import Answer, CallRequest, ProviderFailed
from services.orchestrator.providers.openai import CallBounds, OpenAIProvider
from services.orchestrator.routing import Deployment
from shared.clock import SystemClock
from shared.contracts.content import CallSettings, FunctionCallItem, MessageItem, RefusalItem
from shared.http_client import HttpClient
from tests.support.ports import free_port
from tests.support.sockets import raw_peer
from tests.support.standins import LlmControl

BOUNDS = CallBounds(
    connect_seconds=30, first_token_seconds=30, stall_seconds=30, total_seconds=60, output_bytes_max=1_000_000
)
TOOL = {"type": "function", "name": "find", "parameters": {"type": "object", "properties": {}}}


class Caller:
    """One provider and what its deltas said."""

    def __init__(self, client: HttpClient, base_url: str) -> None:
        self._client = client
        self._base_url = base_url
        self.deltas: list[tuple[str, str]] = []

    async def call(
        self, text: str = "hello [[case]]", *, bounds: CallBounds = BOUNDS, base_url: str | None = None, **settings: Any
    ) -> Answer:
        provider = OpenAIProvider(
            self._client,
            SystemClock(),
            base_url=base_url or self._base_url,
            keys={"OPENAI_API_KEY": SecretStr("sk-of-tests")},
            bounds=bounds,
        )
        deployment = Deployment(name="main", provider="openai", model="standin-1", quota_domain="openai")
        prompt = prompt_of((), (MessageItem(role="user", content=text),), CallSettings(**settings), 500)
        return await provider.call(
            CallRequest(deployment, prompt), lambda kind, delta: self.deltas.append((kind, delta))
        )

    async def failure(self, **arguments: Any) -> ProviderFailed:
        with pytest.raises(ProviderFailed) as failure:
            await self.call(**arguments)
        return failure.value


@pytest.fixture
async def caller(llm: LlmControl, llm_process: Standin) -> AsyncIterator[Caller]:
    client = HttpClient()
    await client.start()
    yield Caller(client, f"{llm_process.url}/v1")
    await client.stop()


def bounds(**changes: float) -> CallBounds:
    fields: dict[str, Any] = dataclasses.asdict(BOUNDS)
    return CallBounds(**fields | changes)


async def test_an_answer_is_streamed_and_counted(caller: Caller, llm: LlmControl) -> None:
    answer = await caller.call()
    assert answer.output.text.startswith("You said: hello")
    assert "".join(text for _, text in caller.deltas) == answer.output.text
    assert len(caller.deltas) > 1
    assert answer.usage is not None
    assert not answer.usage.estimated
    assert answer.first_token_seconds is not None
    (call,) = await llm.calls(marker="case")
    assert call["stream"] is True
    assert call["key_hash"] is not None
    assert call["params"]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "style", [{"crlf": True, "comments": True}, {"http_chunk_bytes": 1}, {"http_chunk_bytes": 7, "crlf": True}]
)
async def test_the_wire_may_be_cut_anywhere(caller: Caller, llm: LlmControl, style: dict[str, Any]) -> None:
    await llm.script("case", {"text": "one\u2028two\u0085three é \U0001f600", **style})
    assert (await caller.call()).output.text == "one\u2028two\u0085three é \U0001f600"


async def test_text_that_nobody_can_store_is_replaced(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "odd_text"})
    text = (await caller.call()).output.text
    text.encode()
    assert "\x00" not in text
    assert text.count("\N{REPLACEMENT CHARACTER}") == 3
    assert "\u2028" in text


async def test_a_refusal_is_an_answer(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "refusal"})
    output = (await caller.call()).output
    assert (output.finish_reason, output.text) == ("refusal", "")
    assert output.items == (RefusalItem(refusal="I cannot help with that."),)
    assert {kind for kind, _ in caller.deltas} == {"refusal.delta"}


@pytest.mark.parametrize(("kind", "cut_by"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_cut_says_by_what(caller: Caller, llm: LlmControl, kind: str, cut_by: str) -> None:
    await llm.script("case", {"kind": kind})
    answer = await caller.call()
    assert answer.cut_by == cut_by
    assert answer.output.text


async def test_a_filter_that_leaves_nothing_is_no_empty_success(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "content_filter", "text": ""})
    answer = await caller.call()
    assert (answer.cut_by, answer.output.text, answer.output.items) == ("content_filter", "", ())


async def test_tool_calls_are_items(caller: Caller, llm: LlmControl) -> None:
    wanted = [{"name": "find", "arguments": {"x": "y" * 100}}, {"name": "read", "arguments": "not json"}]
    await llm.script("case", {"kind": "tool_calls", "tool_calls": wanted})
    output = (await caller.call(tools=(TOOL,))).output
    assert output.finish_reason == "tool_calls"
    assert [item.name for item in output.items if isinstance(item, FunctionCallItem)] == ["find", "read"]
    assert output.items[1].arguments == "not json"  # type: ignore[union-attr]


async def test_an_orderly_end_without_done_is_an_answer(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "eof"})
    assert (await caller.call()).output.text.startswith("You said")


async def test_usage_nobody_sent_is_not_made_up(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"usage": {"prompt_tokens": "many"}})
    assert (await caller.call()).usage is None


@pytest.mark.parametrize(
    ("step", "kind", "status"),
    [
        ({"kind": "empty"}, "empty", 200),
        ({"kind": "drop"}, "cut", None),
        ({"kind": "cut"}, "cut", 200),
        ({"kind": "cut", "after_chunks": 0}, "cut", 200),
        ({"kind": "cut", "cut_how": "close"}, "cut", 200),
        ({"kind": "eof", "after_chunks": 2}, "cut", 200),
        ({"kind": "bad_json"}, "malformed", 200),
        ({"kind": "wrong_type"}, "cut", 200),
        ({"kind": "redirect"}, "malformed", 307),
        ({"kind": "stream_error"}, "server_error", 200),
        ({"kind": "stream_error", "error": {"code": "rate_limit_exceeded"}}, "rate_limited", 200),
        ({"kind": "stream_error", "error": {"code": "insufficient_quota"}}, "quota_exhausted", 200),
        ({"kind": "status", "status": 500}, "server_error", 500),
        ({"kind": "status", "status": 503, "body": "<html>busy</html>"}, "server_error", 503),
        ({"kind": "status", "status": 429}, "rate_limited", 429),
        ({"kind": "status", "status": 429, "error": {"code": "insufficient_quota"}}, "quota_exhausted", 429),
        ({"kind": "status", "status": 401}, "unauthorized", 401),
        ({"kind": "status", "status": 404}, "not_found", 404),
        ({"kind": "status", "status": 400}, "rejected", 400),
        ({"kind": "status", "status": 400, "body": "x" * 1_000_000}, "rejected", 400),
    ],
)
async def test_each_fault_has_its_kind(
    caller: Caller, llm: LlmControl, step: dict[str, Any], kind: str, status: int | None
) -> None:
    await llm.script("case", step)
    failure = await caller.failure()
    assert (failure.kind, failure.http_status) == (kind, status)
    # The provider answered with an error before it worked: nothing was used up.
    assert failure.billable == (status is None or status == 200)


async def test_a_retry_after_comes_with_the_failure(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "status", "status": 429, "retry_after_seconds": 7})
    failure = await caller.failure()
    assert (failure.retry_after_seconds, failure.error_code) == (7, "rate_limit_exceeded")


async def test_a_retry_after_date_is_read_against_the_replys_clock(caller: Caller, llm: LlmControl) -> None:
    step = {"kind": "status", "status": 503, "retry_after_date_seconds": 20, "date_skew_seconds": -5000}
    await llm.script("case", step)
    assert (await caller.failure()).retry_after_seconds == 20


async def test_silence_before_the_first_token_times_out(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "stall", "after_chunks": 0})
    failure = await caller.failure(bounds=bounds(first_token_seconds=0.2))
    assert failure.kind == "timed_out"
    await llm.wait("client_gone >= 1", marker="case")


async def test_comments_are_silence_too(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"comments": True, "between_chunks_ms": 150})
    assert (await caller.failure(bounds=bounds(first_token_seconds=0.05))).kind == "timed_out"


@pytest.mark.parametrize(
    ("status", "expected"),
    [(b"429 Too Many Requests", ("rate_limited", 60.0, False)), (b"500 Oops", ("server_error", 60.0, False))],
)
async def test_what_an_error_says_is_heard_although_its_body_does_not_come(
    caller: Caller, status: bytes, expected: tuple[str, float, bool]
) -> None:
    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A space of UTF-8 beside the number, and the header twice.
        head = b"HTTP/1.1 %b\r\nRetry-After: 60\xc2\xa0\r\nRetry-After: 60\r\nContent-Length: 50\r\n\r\n{"
        writer.write(head % status)
        await reader.read()

    async with raw_peer(begin) as url:
        failure = await caller.failure(base_url=f"{url}/v1", bounds=bounds(first_token_seconds=0.2))
    assert (failure.kind, failure.retry_after_seconds, failure.billable) == expected


async def test_silence_after_the_first_token_is_a_stall(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "stall"})
    failure = await caller.failure(bounds=bounds(stall_seconds=0.2))
    assert (failure.kind, failure.http_status) == ("stalled", 200)
    assert failure.first_token_seconds is not None
    await llm.wait("client_gone >= 1", marker="case")


async def test_a_stream_whose_chunks_are_broken_ends_the_call(caller: Caller, llm: LlmControl) -> None:
    # Where the transport drops the garbage without a word, our own bound ends the wait.
    await llm.script("case", {"kind": "bad_framing"})
    assert (await caller.failure(bounds=bounds(stall_seconds=0.2))).kind in ("malformed", "stalled")


async def test_a_stream_that_never_ends_is_ended_in_total(caller: Caller, llm: LlmControl) -> None:
    for seconds in (0.5, 5, 25):
        await llm.script("case", {"words": 4000, "between_chunks_ms": 50})
        failure = await caller.failure(bounds=bounds(total_seconds=seconds))
        if caller.deltas:  # else the machine was so slow that not a word came in time
            break
    assert failure.kind == "timed_out"
    assert caller.deltas


async def test_more_output_than_we_keep_ends_the_call(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "huge", "huge_bytes": 1_000_000})
    failure = await caller.failure(bounds=bounds(output_bytes_max=100_000), max_output_tokens=1_000_000)
    assert failure.kind == "too_large"
    assert sum(len(text) for _, text in caller.deltas) <= 100_000


async def test_a_port_where_nobody_listens_is_not_billed(caller: Caller) -> None:
    failure = await caller.failure(base_url=f"http://127.0.0.1:{free_port()}/v1")
    assert (failure.kind, failure.billable, failure.http_status) == ("connect_failed", False, None)


async def test_cancelling_the_call_ends_it_at_the_provider(caller: Caller, llm: LlmControl) -> None:
    await llm.script("case", {"kind": "stall"})
    call = asyncio.create_task(caller.call())
    await llm.wait("in_flight >= 1", marker="case")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await llm.wait("client_gone >= 1", marker="case")
