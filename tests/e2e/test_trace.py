"""A request's trace as a collector gets it from the four real services: one tree, from accept to charge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import uuid4

import aiohttp
import pytest

from deploy.local.environment import SERVICES
from deploy.local.servers import RabbitMQ
from tests.support.collector import Collector, ReceivedSpan, collector
from tests.support.parley import Parley
from tests.support.servers import Databases, Vhosts
from tests.support.stack import Account, Stack, running_stack
from tests.support.standins import LlmControl

CANARY: Final = f"canary{uuid4().hex}"
POST: Final = "POST /v1/sessions/{session_id}/requests"


@pytest.fixture(scope="module")
def received() -> Iterator[Collector]:
    with collector() as started:
        yield started


@pytest.fixture(scope="module")
def stack(
    received: Collector,
    rabbitmq_server: RabbitMQ,
    databases: Databases,
    vhosts: Vhosts,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """In place of the session's stack, whose services take no traces."""
    traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": received.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "DRAIN_DELAY_SECONDS": "0"}
    overrides = {service: dict(traced) for service in SERVICES}
    overrides["orchestrator"]["LEASE_SECONDS"] = "3"
    root = tmp_path_factory.mktemp("traced")
    with running_stack(root, rabbitmq_server, databases, vhosts, overrides=overrides) as started:
        yield started


async def test_a_request_is_one_tree_of_steps_and_none_of_them_tells_what_was_said(
    stack: Stack, received: Collector, parley: Parley, llm: LlmControl, account: Account, marker: str
) -> None:
    secret = f"{CANARY} [[{marker}]]"
    await llm.script(
        marker, {"kind": "status", "status": 429, "retry_after_seconds": 3}, {"kind": "ok", "text": f"is {CANARY}"}
    )
    session_id = await parley.session(instructions=CANARY, metadata={CANARY: CANARY})
    trace_id, caller_id = uuid4().hex, uuid4().hex[:16]
    answer = await parley.call(
        "POST",
        f"/v1/sessions/{session_id}/requests",
        body={"input": secret, "metadata": {"about": CANARY}, "temperature": 0.5, "max_output_tokens": 77},
        headers={
            "traceparent": f"00-{trace_id}-{caller_id}-01",
            "tracestate": f"vendor={CANARY}",
            "idempotency-key": f"key-{CANARY}",
        },
    )
    assert answer.status == 202
    request_id = answer.body["id"]
    ended = await parley.wait_ended(request_id)
    assert CANARY in ended["output"]["text"]

    spans = await _trace(received, trace_id)
    (root,) = [span for span in spans if span.parent_id == caller_id]
    assert _tree(spans, root) == (
        f"gateway server {POST}",
        "  gateway internal accept",
        "    gateway producer publish session.requested",
        "      orchestrator consumer consume orchestrator.requests",
        "        orchestrator client attempt failed",
        "        orchestrator client attempt",
        "        orchestrator internal conclude",
        "        orchestrator internal conclude",
        "        orchestrator internal hold",
        "          orchestrator client POST billing",
        "            billing server POST /internal/holds",
        "        orchestrator producer publish session.ended",
        "          results consumer consume results.endings",
        "            results producer publish result.completed",
        "              billing consumer consume billing.results",
        "              gateway consumer consume gateway.results",
        "            results internal store",
    )
    first, second = sorted(_named(spans, "attempt"), key=lambda span: span.started_ns)
    _check_attempts(first, second, ended, session_id, request_id)
    (accepted,) = _named(spans, "accept")
    assert accepted.attributes == {
        "parley.request_id": request_id,
        "parley.session_id": session_id,
        "parley.account_id": account.id,
        "parley.is_replay": False,
    }
    secrets = stack.secrets
    keys = (account.key, secrets.service_token, secrets.api_key_pepper, secrets.stripe_api_key, "sk-stand-in")
    assert [word for word in (CANARY, *keys) if any(word in text for text in received.texts)] == []


def _check_attempts(
    first: ReceivedSpan, second: ReceivedSpan, ended: dict[str, Any], session_id: str, request_id: str
) -> None:
    asked = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": second.attributes["gen_ai.request.model"],
        "gen_ai.request.max_tokens": 77,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stream": True,
        "gen_ai.output.type": "text",
        "gen_ai.conversation.id": session_id,
        "parley.request_id": request_id,
        "parley.deployment": second.attributes["parley.deployment"],
    }
    assert first.attributes == asked | {
        "parley.attempt": 1,
        "parley.fence": 1,
        "error.type": "rate_limited",
        "http.response.status_code": 429,
        "parley.retry_after_seconds": 3.0,
    }
    waited = second.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < waited <= (second.ended_ns - second.started_ns) / 1e9
    assert second.attributes == asked | {
        "parley.attempt": 2,
        "parley.fence": 2,
        "http.response.status_code": 200,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": ended["usage"]["input_tokens"],
        "gen_ai.usage.output_tokens": ended["usage"]["output_tokens"],
        "gen_ai.usage.cache_read.input_tokens": ended["usage"]["cached_input_tokens"],
    }


async def test_a_request_that_another_process_takes_up_goes_on_in_its_trace(
    stack: Stack, received: Collector, parley: Parley, llm: LlmControl, marker: str
) -> None:
    trace_id = uuid4().hex
    await llm.close_gate(marker, marker)
    session_id = await parley.session()
    answer = await parley.call(
        "POST",
        f"/v1/sessions/{session_id}/requests",
        body={"input": f"Hello [[{marker}]]"},
        headers={"traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-01"},
    )
    await llm.wait("in_flight == 1", marker=marker)
    # The dead process exports nothing more: what its steps are the parents of is to be known before.
    await _spans(received, trace_id, lambda spans: bool(_named(spans, "consume orchestrator.requests")))
    await asyncio.to_thread(stack.kill_process, "orchestrator")
    await asyncio.to_thread(stack.start_process, "orchestrator")
    await llm.open_gate(marker)
    assert (await parley.wait_ended(answer.body["id"]))["status"] == "completed"

    spans = await _trace(received, trace_id)
    (attempt,) = _named(spans, "attempt")
    (taken,) = _named(spans, "consume orchestrator.requests")
    (published,) = _named(spans, "publish session.ended")
    assert attempt.attributes["parley.attempt"] == 2
    assert attempt.parent_id == published.parent_id == taken.span_id


async def test_a_turn_that_waits_for_another_is_sent_in_its_own_trace(
    received: Collector, parley: Parley, llm: LlmControl, marker: str
) -> None:
    await llm.close_gate(marker, marker)
    session_id = await parley.session()
    first, second = uuid4().hex, uuid4().hex
    for trace_id in (first, second):
        answer = await parley.call(
            "POST",
            f"/v1/sessions/{session_id}/requests",
            body={"input": f"Hello [[{marker}]]"},
            headers={"traceparent": f"00-{trace_id}-{uuid4().hex[:16]}-01"},
        )
    await llm.open_gate(marker)
    await parley.wait_ended(answer.body["id"])
    spans = await _trace(received, second)
    (accepted,) = _named(spans, "accept")
    (published,) = _named(spans, "publish session.requested")
    (read,) = _named(spans, "GET /internal/sessions/{session_id}/transcript")
    assert published.parent_id == accepted.span_id
    assert {span.attributes.get("gen_ai.conversation.id") for span in _named(spans, "attempt")} == {session_id}
    assert read.service == "parley-results"


async def test_what_its_caller_does_not_sample_is_not_exported(
    received: Collector, parley: Parley, http: aiohttp.ClientSession, stack: Stack, account: Account
) -> None:
    unsampled, sampled = uuid4().hex, uuid4().hex
    for trace_id, flags in ((unsampled, "00"), (sampled, "01")):
        headers = {"authorization": f"Bearer {account.key}", "traceparent": f"00-{trace_id}-{'1' * 16}-{flags}"}
        session_id = await parley.session()
        url = f"{stack.url('gateway')}/v1/sessions/{session_id}/requests"
        async with http.post(url, headers=headers, json={"input": "Hello"}) as response:
            await parley.wait_ended((await response.json())["id"])
    # By the time the second is here in full, so would be the first, which all services have finished with before.
    await _trace(received, sampled)
    assert [span.name for span in received.spans if span.trace_id == unsampled] == []


async def _trace(received: Collector, trace_id: str) -> list[ReceivedSpan]:
    """All of a request that has ended: the steps that come last, and with them the earlier ones of their services."""
    last = {"consume billing.results", "consume gateway.results", "publish session.ended", "store"}
    return await _spans(received, trace_id, lambda spans: last <= {span.name for span in spans} and _is_whole(spans))


async def _spans(received: Collector, trace_id: str, condition: Any) -> list[ReceivedSpan]:
    def of_trace(spans: Sequence[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in spans if span.trace_id == trace_id]

    return of_trace(await asyncio.to_thread(received.wait_for, lambda spans: condition(of_trace(spans))))


def _is_whole(spans: Sequence[ReceivedSpan]) -> bool:
    """One root, under whoever called; every other step's parent is here too."""
    ids = {span.span_id for span in spans}
    return sum(span.parent_id not in ids for span in spans) == 1


def _named(spans: Sequence[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.name == name]


def _tree(spans: Sequence[ReceivedSpan], root: ReceivedSpan, depth: int = 0) -> tuple[str, ...]:
    """Indented lines; siblings by name. An account's copy of eligibility may be asked for or not."""
    service = root.service.removeprefix("parley-")
    line = f"{'  ' * depth}{service} {root.kind} {root.name}{' failed' if root.failed else ''}"
    children = sorted(
        (span for span in spans if span.parent_id == root.span_id and span.name != "GET billing"),
        key=lambda span: (span.service, span.name, span.started_ns),
    )
    return (line, *(found for child in children for found in _tree(spans, child, depth + 1)))
