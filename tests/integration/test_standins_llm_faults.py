"""Every scripted fault of the LLM stand-in reaches the client as what it is called."""

import asyncio
import datetime
import json
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest

from deploy.local.standins.starting import Standin, standin
from tests.support.guard import GUARD_SECONDS

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def llm() -> Iterator[Standin]:
    with standin("llm") as process:
        yield process


@pytest.fixture
async def api(llm: Standin) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=llm.url, headers={"Authorization": "Bearer k"}, timeout=GUARD_SECONDS
    ) as client:
        yield client


@pytest.fixture
async def control(llm: Standin) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=llm.control_url, timeout=1.5 * GUARD_SECONDS) as client:
        assert (await client.post("/reset")).status_code == 200
        yield client


def question(text: str = "hello", stream: bool = True) -> dict[str, Any]:
    return {"model": "standin-1", "stream": stream, "messages": [{"role": "user", "content": text}]}


async def script(control: httpx.AsyncClient, *steps: dict[str, Any], **fields: Any) -> None:
    reply = await control.post("/rules", json={"rules": [{"steps": list(steps), **fields}]})
    assert reply.status_code == 200, reply.text


async def until(control: httpx.AsyncClient, condition: str, marker: str | None = None) -> dict[str, int]:
    reply = await control.post("/await", json={"until": condition, "marker": marker, "timeout_seconds": GUARD_SECONDS})
    assert reply.status_code == 200, reply.text
    counters: dict[str, int] = reply.json()
    return counters


async def broken_read(api: httpx.AsyncClient) -> tuple[bytes, type[Exception]]:
    """What arrived before the stream broke, and the error it broke with."""
    read = b""
    try:
        async with api.stream("POST", PATH, json=question()) as reply:
            async for part in reply.aiter_raw():
                read += part
    except httpx.TransportError as error:
        return read, type(error)
    raise AssertionError("the stream did not break")


async def outcome_of_last_call(control: httpx.AsyncClient) -> str:
    outcome: str = (await control.get("/calls")).json()["calls"][-1]["outcome"]
    return outcome


async def test_a_marker_s_steps_are_used_in_order_and_then_the_default(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await script(control, {"kind": "status", "status": 503}, {"kind": "empty"}, match={"marker": "case-17"})
    replies = [await api.post(PATH, json=question("do it [[case-17]]", stream=False)) for _ in range(3)]
    other = await api.post(PATH, json=question("do it [[case-18]]", stream=False))
    assert [reply.status_code for reply in replies] == [503, 200, 200]
    assert replies[0].json()["error"]["code"] == "server_is_overloaded"
    texts = [reply.json()["choices"][0]["message"]["content"] for reply in replies[1:]]
    assert texts[0] == ""
    assert texts[1].startswith("You said: do it [[case-17]]")
    assert other.status_code == 200
    assert (await until(control, "calls >= 3", "case-17"))["calls"] == 3


async def test_a_rule_can_wait_for_the_nth_call_and_match_a_header(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await script(control, {"kind": "status", "status": 500}, nth=2)
    await script(control, {"kind": "status", "status": 418}, match={"header": {"X-Who": "teapot"}}, repeat=True)
    statuses = [(await api.post(PATH, json=question())).status_code for _ in range(3)]
    teapots = [(await api.post(PATH, json=question(), headers={"x-who": "a teapot"})).status_code for _ in range(2)]
    assert (statuses, teapots) == ([200, 500, 200], [418, 418])


async def test_retry_after_comes_as_seconds_or_as_a_date_against_a_skewed_clock(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    dated = {"kind": "status", "status": 429, "retry_after_date_seconds": 30, "date_skew_seconds": 3600}
    await script(control, {"kind": "status", "status": 429, "retry_after_seconds": 1.5}, dated)
    seconds, date = [await api.post(PATH, json=question()) for _ in range(2)]
    assert (seconds.headers["retry-after"], seconds.json()["error"]["code"]) == ("1.5", "rate_limit_exceeded")
    sent = parsedate_to_datetime(date.headers["date"])
    assert parsedate_to_datetime(date.headers["retry-after"]) - sent == datetime.timedelta(seconds=30)
    ahead = sent - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(minutes=59) < ahead < datetime.timedelta(minutes=61)


async def test_an_error_says_exactly_what_the_script_says(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    error = {"type": "insufficient_quota", "code": "insufficient_quota"}
    await script(
        control,
        {"kind": "status", "status": 429, "error": error, "headers": {"x-should-retry": "false"}},
        {"kind": "status", "status": 502, "body": "<html>bad gateway</html>"},
        {"kind": "redirect", "location": "http://127.0.0.1:1/elsewhere"},
    )
    quota, html, redirect = [await api.post(PATH, json=question()) for _ in range(3)]
    assert quota.json()["error"] | error == quota.json()["error"]
    assert quota.headers["x-should-retry"] == "false"
    assert (html.status_code, html.text) == (502, "<html>bad gateway</html>")
    assert (redirect.status_code, redirect.headers["location"]) == (307, "http://127.0.0.1:1/elsewhere")


async def test_a_cut_resets_the_connection_after_k_frames(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await script(control, {"kind": "cut", "after_chunks": 3}, {"kind": "cut", "after_chunks": 1, "cut_how": "close"})
    read, error = await broken_read(api)
    assert (read.count(b"data: "), error) == (3, httpx.ReadError)
    read, error = await broken_read(api)
    assert (read.count(b"data: "), error) == (1, httpx.RemoteProtocolError)
    await until(control, "in_flight == 0")
    assert await outcome_of_last_call(control) == "broken"


async def test_broken_chunk_framing_is_a_protocol_error(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await script(control, {"kind": "bad_framing"})
    read, error = await broken_read(api)
    assert (read.count(b"data: "), error) == (2, httpx.RemoteProtocolError)


async def test_a_drop_ends_the_connection_without_a_byte(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await script(control, {"kind": "drop"}, {"kind": "drop", "cut_how": "close"})
    for error in (httpx.ReadError, httpx.RemoteProtocolError):
        with pytest.raises(error):
            await api.post(PATH, json=question())


async def test_an_orderly_end_without_done(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await script(control, {"kind": "eof"}, {"kind": "eof", "after_chunks": 2})
    whole, part = [(await api.post(PATH, json=question())).content for _ in range(2)]
    assert b'"finish_reason":"stop"' in whole
    assert b"[DONE]" not in whole
    assert (part.count(b"data: "), b'finish_reason":"' in part) == (2, False)


async def test_a_frame_that_is_not_json_and_a_page_that_is_no_stream(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await script(control, {"kind": "bad_json", "after_chunks": 1}, {"kind": "wrong_type"})
    broken, page = [await api.post(PATH, json=question()) for _ in range(2)]
    lines = broken.content.split(b"\n\n")
    json.loads(lines[0].removeprefix(b"data: "))
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[1].removeprefix(b"data: "))
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html")


async def test_an_error_inside_the_stream_ends_it(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await script(control, {"kind": "stream_error", "after_chunks": 2, "error": {"message": "no", "code": "boom"}})
    *_, last, rest = (await api.post(PATH, json=question())).content.split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: ")) == {"error": {"message": "no", "code": "boom"}}
    assert rest == b""


@pytest.mark.parametrize(
    ("kind", "finish_reason", "content"),
    [("content_filter", "content_filter", True), ("length", "length", True), ("empty", "stop", False)],
)
async def test_a_finish_of_another_kind(
    api: httpx.AsyncClient, control: httpx.AsyncClient, kind: str, finish_reason: str, content: bool
) -> None:
    await script(control, {"kind": kind})
    choice = (await api.post(PATH, json=question(stream=False))).json()["choices"][0]
    assert choice["finish_reason"] == finish_reason
    assert bool(choice["message"]["content"]) == content


async def test_a_refusal_streams_in_a_field_of_its_own(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await script(control, {"kind": "refusal"}, {"kind": "refusal"})
    stream = (await api.post(PATH, json=question())).content
    message = (await api.post(PATH, json=question(stream=False))).json()["choices"][0]["message"]
    deltas = [
        json.loads(line[6:])["choices"][0]["delta"] for line in stream.split(b"\n\n") if line.startswith(b"data: {")
    ]
    assert "".join(delta.get("refusal") or "" for delta in deltas) == "I cannot help with that."
    assert not any(delta.get("content") for delta in deltas)
    assert (message["content"], message["refusal"]) == (None, "I cannot help with that.")


async def test_odd_characters_travel_as_escapes_or_as_they_are(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await script(control, {"kind": "odd_text"}, {"kind": "odd_text"})
    raw = (await api.post(PATH, json=question())).content
    assert b"\\u0000" in raw
    assert b"\\ud800" in raw
    assert "\u2028".encode() in raw
    content = (await api.post(PATH, json=question(stream=False))).json()["choices"][0]["message"]["content"]
    assert all(chr(code) in content for code in (0, 0xD800, 0xDC00, 0x2028, 0x2029, 0x85))


async def test_a_huge_answer_has_the_size_asked_for(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    await script(control, {"kind": "huge", "huge_bytes": 5_000_000})
    choice = (await api.post(PATH, json=question(stream=False))).json()["choices"][0]
    assert len(choice["message"]["content"]) == 5_000_000


async def test_frames_can_be_cut_into_small_chunks_with_crlf_and_comments(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await script(control, {"crlf": True, "comments": True, "http_chunk_bytes": 3})
    raw = (await api.post(PATH, json=question())).content
    assert raw.startswith(b": keep-alive\r\n\r\ndata: {")
    assert raw.endswith(b"data: [DONE]\r\n\r\n")
    assert raw.count(b"\n") == raw.count(b"\r\n")


async def test_a_stall_waits_at_its_gate_and_goes_on_when_it_opens(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await control.put("/gates/middle", json={})
    await script(control, {"kind": "stall", "after_chunks": 2, "gate": "middle"})
    call = asyncio.create_task(api.post(PATH, json=question()))
    await until(control, "held == 1")
    assert (await control.get("/calls")).json()["calls"][0]["frames_sent"] == 2
    assert (await control.delete("/gates/middle")).json() == {"released": 1}
    assert (await call).content.endswith(b"[DONE]\n\n")


async def test_a_client_that_leaves_a_stalled_stream_is_seen(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await script(control, {"kind": "stall", "after_chunks": 1}, match={"marker": "leave"})
    async with api.stream("POST", PATH, json=question("[[leave]]")) as reply:
        await anext(reply.aiter_raw())
        await until(control, "held == 1", "leave")
    assert (await until(control, "client_gone == 1", "leave"))["in_flight"] == 0
    assert await outcome_of_last_call(control) == "client_gone"


async def test_a_gate_holds_matching_calls_and_lets_them_pass_one_by_one(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await control.put("/gates/g", json={"match": {"marker": "held"}})
    held = [asyncio.create_task(api.post(PATH, json=question("[[held]]"))) for _ in range(3)]
    assert (await until(control, "held == 3"))["in_flight"] == 3
    assert (await api.post(PATH, json=question("free"))).status_code == 200
    await control.post("/gates/g/release", json={"count": 1})
    await until(control, "ended == 1", "held")
    await control.delete("/gates/g")
    assert [reply.status_code for reply in await asyncio.gather(*held)] == [200, 200, 200]
    assert (await until(control, "in_flight == 0"))["peak_in_flight"] == 4


async def test_a_large_body_is_logged_by_its_size_alone(api: httpx.AsyncClient, control: httpx.AsyncClient) -> None:
    body = question("x" * 100_000, stream=False)
    await api.post(PATH, json=body)
    (call,) = (await control.get("/calls")).json()["calls"]
    assert call["messages"] is None
    assert call["params"]["omitted_bytes"] > 100_000
    assert call["model"] == "standin-1"


async def test_an_await_that_is_not_reached_says_so(control: httpx.AsyncClient) -> None:
    reply = await control.post("/await", json={"until": "calls >= 1", "timeout_seconds": 0.05})
    assert (reply.status_code, reply.json()["calls"]) == (408, 0)


async def test_a_seeded_mix_gives_each_case_the_same_fate_in_any_order(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    faults = [
        {"probability": 0.3, "behaviour": {"kind": "status", "status": 500}},
        {"probability": 0.3, "behaviour": {"kind": "status", "status": 429}},
    ]

    async def fates(cases: list[int]) -> dict[int, list[int]]:
        assert (await control.put("/mix", json={"seed": 5, "faults": faults})).status_code == 200
        return {n: [(await api.post(PATH, json=question(f"[[{n}]]"))).status_code for _ in range(2)] for n in cases}

    forwards, backwards = await fates(list(range(30))), await fates(list(reversed(range(30))))
    assert forwards == backwards
    assert {status for fate in forwards.values() for status in fate} == {200, 429, 500}


async def test_latency_is_taken_before_the_first_byte_and_between_frames(
    api: httpx.AsyncClient, control: httpx.AsyncClient
) -> None:
    await control.put(
        "/default", json={"first_byte_ms": 40, "first_token_ms": 30, "between_chunks_ms": 10, "words": 12}
    )
    await api.post(PATH, json=question())
    (call,) = (await control.get("/calls")).json()["calls"]
    assert call["first_byte_at"] - call["arrived_at"] >= 0.039
    assert call["ended_at"] - call["first_byte_at"] >= 0.029 + 0.009 * (call["frames_sent"] - 1)


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ({"kind": "explode"}, "kind\n  Input should be 'ok', 'status'"),
        ({"kidn": "cut"}, "has no kidn"),
        ({"huge_bytes": -1}, "huge_bytes"),
        ({"pieces": 20}, "pieces\n  Input should be a valid list"),
    ],
)
async def test_a_misspelt_fault_is_refused(control: httpx.AsyncClient, step: dict[str, Any], complaint: str) -> None:
    reply = await control.post("/rules", json={"rules": [{"steps": [step]}]})
    assert reply.status_code == 400
    assert complaint in reply.json()["error"]
