"""Traces over a real bus, real sockets and a collector of the test's own; and what becomes of them without one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, web

from services.results.proposal import of_ended, result_of
from shared import logs, tracing
from shared.contracts.message import Message
from shared.contracts.orchestrator import SessionEnded
from shared.errors import Problem, Unprocessable
from shared.http import HttpServer, json_response, make_app
from shared.http_client import HttpClient, InternalApi
from shared.ids import new_id
from shared.messaging.broker import Broker
from shared.messaging.consumer import BatchHandler, Consumer, Gate
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.messaging.replay import replay
from shared.postgres import Database
from tests.support.bus import Bus, bus, eventually
from tests.support.collector import Collector, ReceivedSpan, collector
from tests.support.ports import free_port
from tests.support.result_messages import ended, output_of

QUEUE = "results.endings"
CANARY = "canary-5150"


@pytest.fixture
def received() -> Iterator[Collector]:
    with collector() as started:
        yield started


@pytest.fixture
def take_traces(received: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`take_traces(OTEL_...="...")`: on, in this process, until the test ends."""

    def configure(**environ: str) -> None:
        for name, value in {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            **environ,
        }.items():
            monkeypatch.setenv(name, value)
        tracing.configure("test")

    yield configure
    tracing.shutdown()


class World:
    """Broker, publisher, parking and a plain connection beside them."""

    def __init__(self, broker: Broker, publisher: Publisher, database: Database, plain: Bus) -> None:
        self.broker = broker
        self.publisher = publisher
        self.parking = Parking(database)
        self.bus = plain

    @asynccontextmanager
    async def consuming(self, handler: BatchHandler[Any], gate: Gate | None = None) -> AsyncIterator[Consumer]:
        consumer = Consumer(self.broker, self.publisher, self.parking, QUEUE, {SessionEnded: handler}, gate=gate)
        await consumer.start()
        try:
            yield consumer
        finally:
            consumer.drain()
            await consumer.stop()


@pytest.fixture
async def world(broker: Broker, publisher: Publisher, kernel_database: Database, amqp_url: str) -> AsyncIterator[World]:
    async with bus(amqp_url) as plain:
        yield World(broker, publisher, kernel_database, plain)


def ended_under(step: tracing.Span, output: str = "Hi") -> SessionEnded:
    return ended(new_id("req"), output_of(output)).model_copy(update={"traceparent": step.traceparent})


async def answer_all(messages: Sequence[SessionEnded]) -> Sequence[Message]:
    return [result_of(of_ended(message), cursor=1, attempt_heard=1) for message in messages]


async def test_members_of_one_batch_stay_in_their_own_traces(
    world: World, received: Collector, take_traces: Callable[..., None]
) -> None:
    take_traces()
    messages = []
    for number in range(5):
        with tracing.span(f"request {number}") as step:
            messages.append(ended_under(step, CANARY))
    await world.publisher.publish(*messages)
    listener = await world.bus.listen("result.completed")
    all_here = asyncio.Event()

    async def gate() -> None:
        await all_here.wait()

    async with world.consuming(answer_all, gate) as consumer:
        await eventually(lambda: _is(len(consumer._arrived), 5))
        all_here.set()
        heard = await listener.wait_for(5)
        spans = await asyncio.to_thread(received.wait_for, lambda spans: len(spans) == 20)
    answers = {answer.headers["ce-subject"]: answer.headers["traceparent"] for answer in heard}
    assert {span.attributes["parley.batch_size"] for span in _named(spans, f"consume {QUEUE}")} == {5}
    for number, message in enumerate(messages):
        (root,) = _named(spans, f"request {number}")
        walk = _walk([span for span in spans if span.trace_id == root.trace_id], root)
        assert [(span.kind, span.name) for span in walk] == [
            ("internal", f"request {number}"),
            ("producer", "publish session.ended"),
            ("consumer", f"consume {QUEUE}"),
            ("producer", "publish result.completed"),
        ]
        assert {span.attributes["cloudevents.event_subject"] for span in walk[1:]} == {message.request_id}
        assert _place(answers[message.request_id]) == (root.trace_id, walk[-1].span_id)
    assert CANARY not in "".join(received.texts)


async def test_a_messages_place_in_its_trace_is_in_its_envelope_and_not_in_its_body(
    world: World, take_traces: Callable[..., None]
) -> None:
    take_traces()
    listener = await world.bus.listen("session.ended")
    with tracing.span("request") as step:
        await world.publisher.publish(ended_under(step))
    (heard,) = await listener.wait_for(1)
    assert _place(heard.headers["traceparent"])[0] == _place(step.traceparent)[0]
    assert b"traceparent" not in heard.body


async def test_a_parked_message_fails_its_step_and_its_replay_goes_on_in_its_trace(
    world: World, received: Collector, take_traces: Callable[..., None]
) -> None:
    take_traces()

    async def refuse(messages: Sequence[SessionEnded]) -> Sequence[Message]:
        raise Unprocessable(f"of_no_use: {CANARY}")

    async with world.consuming(refuse):
        with tracing.span("request") as step:
            await world.publisher.publish(ended_under(step))
        await asyncio.to_thread(received.wait_for, lambda spans: len(_named(spans, f"consume {QUEUE}")) == 1)
    (parked,) = await world.parking.select_page()
    await replay(world.parking, world.broker, parked.id)
    async with world.consuming(answer_all):
        spans = await asyncio.to_thread(
            received.wait_for,
            lambda spans: len(_named(spans, f"consume {QUEUE}")) == 2 and bool(_named(spans, "request")),
        )
    first, second = sorted(_named(spans, f"consume {QUEUE}"), key=lambda span: span.started_ns)
    (root,) = _named(spans, "request")
    assert (first.failed, first.attributes["error.type"], second.failed) == (True, "parked", False)
    assert first.trace_id == second.trace_id == root.trace_id
    assert CANARY not in "".join(received.texts)


@asynccontextmanager
async def _serving(received_headers: list[Mapping[str, str]]) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.Response:
        received_headers.append(request.headers)
        match request.match_info["how"]:
            case "refused":
                raise Problem(409, "busy", CANARY)
            case "broken":
                raise RuntimeError(CANARY)
        return json_response({})

    app = make_app(body_bytes_max=1000)
    app.add_routes([web.get("/things/{how}", answer)])
    port = free_port()
    server = HttpServer(app, host="127.0.0.1", port=port, drain_seconds=0.1)
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop()


async def test_an_internal_call_continues_its_callers_trace(
    received: Collector, take_traces: Callable[..., None]
) -> None:
    take_traces()
    seen: list[Mapping[str, str]] = []
    client = HttpClient()
    await client.start()
    async with _serving(seen) as url:
        with tracing.span("request"):
            await InternalApi(client, url, CANARY, peer="things").get(f"/things/{CANARY}", params={"q": CANARY})
        await client.stop()
        spans = await asyncio.to_thread(received.wait_for, lambda spans: len(spans) == 3)
    (root,) = _named(spans, "request")
    walk = _walk(spans, root)
    assert [(span.kind, span.name) for span in walk] == [
        ("internal", "request"),
        ("client", "GET things"),
        ("server", "GET /things/{how}"),
    ]
    assert _place(seen[0]["traceparent"]) == (root.trace_id, walk[1].span_id)
    assert CANARY not in "".join(received.texts)


@pytest.mark.parametrize(
    ("path", "route", "status", "failed"),
    [
        ("/things/fine", "/things/{how}", 200, False),
        ("/things/refused", "/things/{how}", 409, False),
        ("/things/broken", "/things/{how}", 500, True),
        (f"/{CANARY}?{CANARY}", "unknown", 404, False),
    ],
)
async def test_only_what_is_our_fault_is_a_failed_call(
    received: Collector, take_traces: Callable[..., None], path: str, route: str, status: int, failed: bool
) -> None:
    take_traces()
    headers = {"traceparent": f"{CANARY}", "x-request-id": CANARY}
    async with _serving([]) as url, ClientSession() as http, http.get(url + path, headers=headers) as response:
        assert response.status == status
        (span,) = await asyncio.to_thread(received.wait_for, lambda spans: len(spans) == 1)
    assert span.name == f"GET {route}"
    assert span.parent_id == ""
    assert (span.attributes["http.response.status_code"], span.failed) == (status, failed)
    assert CANARY not in "".join(received.texts)


async def test_work_that_is_shared_is_found_from_every_trace_that_shares_it(
    received: Collector, take_traces: Callable[..., None]
) -> None:
    take_traces()
    parents = [tracing.span(f"request {number}") for number in range(3)]
    with tracing.shared_step("hold", [parent.traceparent for parent in parents]), tracing.span("the call"):
        pass
    spans = await asyncio.to_thread(received.wait_for, lambda spans: len(spans) == 4)
    (call,) = _named(spans, "the call")
    holds = {span.span_id: span for span in _named(spans, "hold")}
    first = holds.pop(call.parent_id)
    assert {span.trace_id for span in (first, *holds.values())} == {_place(p.traceparent)[0] for p in parents}
    assert [span.links for span in holds.values()] == [((first.trace_id, first.span_id),)] * 2


def test_what_is_resumed_belongs_under_its_own_step_whatever_the_task_did_before(
    take_traces: Callable[..., None],
) -> None:
    take_traces()
    own = tracing.span("own")
    with tracing.span("another request"):
        with tracing.within(own.traceparent):
            assert tracing.current_traceparent() == own.traceparent
        with tracing.within(None):
            assert tracing.current_traceparent() is None
        with tracing.within("no traceparent"):
            assert tracing.current_traceparent() is None


def test_a_log_line_has_the_ids_of_the_step_under_way(take_traces: Callable[..., None]) -> None:
    take_traces()
    with tracing.span("request") as step:
        inside = logs.add_trace(None, "info", {"event": "attempt.ended"})
    outside = logs.add_trace(None, "info", {"event": "attempt.ended"})
    assert (inside["trace_id"], inside["span_id"]) == _place(step.traceparent)
    assert "trace_id" not in outside


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({}, {"the caller's", "own"}),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, {"the caller's"}),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, set()),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, {"the caller's"}),
    ],
)
def test_sampling_follows_the_caller_or_the_setting(
    received: Collector, take_traces: Callable[..., None], environ: Mapping[str, str], kept: set[str]
) -> None:
    take_traces(**environ)
    with tracing.span("the caller's", parent=f"00-{'1' * 32}-{'2' * 16}-01"):
        pass
    with tracing.span("the caller's not", parent=f"00-{'1' * 32}-{'2' * 16}-00") as unsampled:
        assert str(unsampled.traceparent).endswith("-00")
    with tracing.span("own"):
        pass
    tracing.shutdown()
    assert {span.name for span in received.spans} == kept


def test_an_end_hands_over_what_is_left(received: Collector, take_traces: Callable[..., None]) -> None:
    take_traces(OTEL_BSP_SCHEDULE_DELAY="3600000")
    for number in range(50):
        tracing.span(f"request {number}").end()
    tracing.shutdown()
    assert len(received.spans) == 50
    assert tracing.span("later") is tracing.NO_SPAN


def test_a_collector_that_does_not_answer_costs_spans_and_no_more(
    received: Collector, take_traces: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS_MAX", 0.1)
    received.answers.clear()
    take_traces(OTEL_BSP_MAX_QUEUE_SIZE="20", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10")
    try:
        for number in range(10):
            tracing.span(f"first {number}").end()
        received.wait_exported(1)
        for number in range(1000):
            tracing.span(f"later {number}").end()
        tracing.shutdown()
        # It came back while the collector still holds the first export.
        assert len(received.spans) == 10
    finally:
        received.answers.set()
    left = [thread for thread in threading.enumerate() if thread.name == "OtelBatchSpanRecordProcessor"]
    for thread in left:
        thread.join()
    assert len(received.spans) <= 30


@pytest.mark.parametrize("how", ["refuses", "away"])
def test_a_collector_that_refuses_or_is_away_is_no_error_of_ours(
    received: Collector, take_traces: Callable[..., None], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    received.status = 400
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with caplog.at_level(logging.WARNING):
        take_traces(**(away if how == "away" else {}))
        with tracing.span("request"):
            pass
        tracing.shutdown()
    assert any(record.name.startswith("opentelemetry") for record in caplog.records)


def test_while_it_is_off_nothing_is_made_stored_or_sent() -> None:
    assert tracing.span("request") is tracing.NO_SPAN
    message = ended(new_id("req"), output_of("Hi"))
    assert tracing.publishing(message, "parley") is tracing.NO_SPAN
    assert tracing.consuming(message, {}, "parley", QUEUE, 1) is tracing.NO_SPAN
    assert tracing.serving("GET", "/", {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}) is tracing.NO_SPAN
    assert tracing.under(tracing.NO_SPAN, message) is message
    given = [message]
    assert tracing.continued(given, given) is given
    headers = {"accept": "text/event-stream"}
    assert tracing.outgoing(headers) is headers
    assert tracing.current_traceparent() is None
    assert "traceparent" not in message.model_dump_json()


def test_while_it_is_off_the_sdk_is_not_even_loaded() -> None:
    script = (
        "import json, sys, services.gateway.app, services.orchestrator.app, services.billing.app, services.results.app;"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry.')]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env=dict(os.environ), capture_output=True, text=True, check=True
    )
    loaded: list[str] = json.loads(found.stdout)
    assert "opentelemetry.trace" in loaded
    assert [name for name in loaded if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))] == []


def _named(spans: Sequence[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.name == name]


def _walk(spans: Sequence[ReceivedSpan], step: ReceivedSpan) -> list[ReceivedSpan]:
    """The step and what follows from it, each from the one before."""
    walk = [step]
    while following := [span for span in spans if span.parent_id == walk[-1].span_id]:
        (only,) = following
        walk.append(only)
    return walk


async def _is(count: int, expected: int) -> bool:
    return count == expected


def _place(traceparent: object) -> tuple[str, str]:
    """The ids of trace and span in a `traceparent`."""
    _, trace_id, span_id, _ = str(traceparent).split("-")
    return trace_id, span_id
