"""The main job, end to end: real services, broker and database; provider and Stripe are processes of their own."""

import asyncio
import itertools
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from tests.support.bus import bus, eventually
from tests.support.guard import GUARD_SECONDS
from tests.support.parley import Parley
from tests.support.stack import Account, Stack
from tests.support.standins import LlmControl, StripeControl


async def test_a_turn_walks_from_accept_to_charge(parley: Parley, stack: Stack, llm: LlmControl, marker: str) -> None:
    async with bus(stack.urls["AMQP_URL"]) as plain:
        listener = await plain.listen("result.#")
        session_id = await parley.session(instructions="Be brief.")
        answer = await parley.call("POST", f"/v1/sessions/{session_id}/requests", body={"input": f"Hello [[{marker}]]"})
        request_id = answer.body["id"]
        ended = await parley.wait_ended(request_id)
        heard = await listener.wait_for(1)
        while not any(_is_end_of(incoming, request_id) for incoming in heard):
            heard = await listener.wait_for(len(heard) + 1)
    assert answer.status == 202
    assert answer.headers["Location"] == f"/v1/requests/{request_id}"
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.body["poll_after_ms"] > 0
    assert ended["status"] == "completed"
    assert ended["output"]["text"]
    assert ended["usage"]["input_tokens"] > 0
    charged = await parley.wait_charged(request_id)
    assert charged["charge"]["tokens"] == ended["usage"]["input_tokens"] + ended["usage"]["output_tokens"]
    calls = await llm.calls(marker=marker)
    assert len(calls) == 1
    assert calls[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    await _timeline_tells_the_walk(parley, request_id)


def _is_end_of(incoming: object, request_id: str) -> bool:
    headers = getattr(incoming, "headers", {})
    return bool(headers["ce-subject"] == request_id and headers["ce-type"] == "result.completed")


async def _timeline_tells_the_walk(parley: Parley, request_id: str) -> None:
    types = [(entry["service"], entry["type"]) for entry in await parley.timeline(request_id)]
    walk = [
        ("gateway", "request.accepted"),
        ("billing", "decision.made"),
        ("billing", "hold.created"),
        ("orchestrator", "attempt.started"),
        ("orchestrator", "attempt.ended"),
        ("results", "result.stored"),
        ("billing", "hold.settled"),
        ("billing", "charge.recorded"),
    ]
    assert [step for step in types if step in walk] == walk


async def test_four_attempts_their_waits_and_a_client_that_lives_on_deltas(
    parley: Parley, llm: LlmControl, marker: str
) -> None:
    await llm.script(
        marker,
        {"kind": "status", "status": 429, "retry_after_seconds": 3},
        {"kind": "status", "status": 500},
        {"kind": "cut", "after_chunks": 4, "between_chunks_ms": 150},
        {"kind": "ok", "words": 60, "between_chunks_ms": 60},
    )
    session_id = await parley.session()
    request_id = await parley.post(session_id, f"Tell me a story [[{marker}]]")
    reader, ended = await asyncio.gather(parley.read_log(request_id), parley.wait_ended(request_id))
    assert ended["status"] == "completed"
    assert reader.text == ended["output"]["text"]
    assert reader.types.count("output.superseded") >= 1
    assert reader.types[-1] == "request.completed"

    calls = await llm.calls(marker=marker)
    assert [call["outcome"] for call in calls][-1] == "completed"
    assert [call["status"] for call in calls] == [429, 500, 200, 200]
    # By the provider's own clock: from the end of its 429 to the arrival of the next call.
    assert calls[1]["arrived_at"] - calls[0]["ended_at"] >= 3.0

    entries = await parley.timeline(request_id)
    attempts = [entry["data"] for entry in entries if entry["type"] == "attempt.ended"]
    assert [attempt["attempt"] for attempt in attempts] == [1, 2, 3, 4]
    assert [attempt["outcome"] for attempt in attempts] == ["rate_limited", "server_error", "cut", "succeeded"]
    assert attempts[0]["retry_after_seconds"] == 3
    waits = [entry["data"] for entry in entries if entry["type"] == "wait.started"]
    assert waits[0]["reason"] == "provider_rate_limit"
    assert len(waits) == 3
    assert (await parley.wait_charged(request_id))["charge"]["tokens"] == (
        ended["usage"]["input_tokens"] + ended["usage"]["output_tokens"]
    )


async def test_two_readers_see_the_same_log_also_long_after_the_end(
    parley: Parley, llm: LlmControl, marker: str
) -> None:
    await llm.script(marker, {"kind": "ok", "words": 40, "between_chunks_ms": 40})
    request_id = await parley.post(await parley.session(), f"[[{marker}]]")
    live, other = await asyncio.gather(parley.read_log(request_id), parley.read_log(request_id))
    late = await parley.read_log(request_id)
    assert live.events == other.events == late.events


async def test_a_session_of_ten_turns_posted_at_once_runs_in_order_with_its_context(
    parley: Parley, llm: LlmControl, marker: str
) -> None:
    session_id, other_session_id = await parley.session(), await parley.session()
    await llm.close_gate(marker, f"{marker}-1")
    turns = []
    for number in range(1, 11):
        turns.append(await parley.post(session_id, f"Turn {number} [[{marker}-{number}]]"))
    await llm.wait("calls >= 1", marker=f"{marker}-1")
    beside = await parley.post(other_session_id, f"Beside [[{marker}-beside]]")
    assert (await parley.wait_ended(beside))["status"] == "completed", "a second session runs beside the first"
    waiting = await parley.get(turns[4])
    assert (waiting["status"], waiting["waiting_on"]) == ("queued", "session_turn")
    await llm.open_gate(marker)
    ended = [await parley.wait_ended(turn) for turn in turns]
    assert [turn["status"] for turn in ended] == ["completed"] * 10

    calls = await llm.calls(contains=f"[[{marker}-1]]")
    assert len(calls) == 10
    for before, after in itertools.pairwise(calls):
        assert after["arrived_at"] >= before["ended_at"], "turns of one session never overlap"
    for number, call in enumerate(calls, start=1):
        said = [(message["role"], message["content"]) for message in call["messages"]]
        expected = []
        for earlier in range(1, number):
            expected.append(("user", f"Turn {earlier} [[{marker}-{earlier}]]"))
            expected.append(("assistant", ended[earlier - 1]["output"]["text"]))
        assert said == [*expected, ("user", f"Turn {number} [[{marker}-{number}]]")]
    transcript = (await parley.ask("GET", f"/v1/sessions/{session_id}/messages?limit=100"))["data"]
    assert len(transcript) == 20


async def test_a_running_call_is_cancelled_and_a_disconnect_is_not_a_cancel(
    parley: Parley, llm: LlmControl, marker: str
) -> None:
    await llm.script(marker, {"kind": "stall", "after_chunks": 3})
    session_id = await parley.session()
    request_id = await parley.post(session_id, f"[[{marker}]]")
    waiting_client = asyncio.create_task(parley.wait_ended(request_id))
    await llm.wait("in_flight >= 1", marker=marker)
    waiting_client.cancel()
    await asyncio.gather(waiting_client, return_exceptions=True)
    assert (await llm.wait("in_flight >= 1", marker=marker))["in_flight"] == 1
    await parley.ask("POST", f"/v1/requests/{request_id}/cancel")
    ended = await parley.wait_ended(request_id)
    assert ended["status"] == "cancelled"
    assert (await llm.wait("in_flight == 0", marker=marker))["client_gone"] == 1
    again = await parley.ask("POST", f"/v1/requests/{request_id}/cancel")
    assert again["status"] == "cancelled"


async def test_a_cancelled_turn_frees_the_next_one(parley: Parley, llm: LlmControl, marker: str) -> None:
    await llm.script(f"{marker}-1", {"kind": "stall", "after_chunks": 0})
    session_id = await parley.session()
    turns = [await parley.post(session_id, f"[[{marker}-{number}]]") for number in (1, 2, 3)]
    await llm.wait("in_flight >= 1", marker=f"{marker}-1")
    await parley.ask("POST", f"/v1/requests/{turns[1]}/cancel")
    assert (await parley.wait_ended(turns[1]))["status"] == "cancelled"
    await parley.ask("POST", f"/v1/requests/{turns[0]}/cancel")
    ended = [await parley.wait_ended(turn) for turn in turns]
    assert [turn["status"] for turn in ended] == ["cancelled", "cancelled", "completed"]
    assert await llm.calls(marker=f"{marker}-2") == []
    assert (await parley.wait_charged(turns[1]))["charge"]["tokens"] == 0


async def test_a_deadline_ends_a_request_whose_provider_never_answers(
    parley: Parley, llm: LlmControl, marker: str
) -> None:
    await llm.ask(
        "POST", "/rules", {"rules": [{"match": {"marker": marker}, "steps": [{"kind": "stall"}], "repeat": True}]}
    )
    request_id = await parley.post(await parley.session(), f"[[{marker}]]", deadline_seconds=3)
    ended = await parley.wait_ended(request_id)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "deadline_exceeded")
    took = datetime.fromisoformat(ended["ended_at"]) - datetime.fromisoformat(ended["created_at"])
    assert took.total_seconds() < 3 + 30


async def test_the_same_idempotency_key_never_runs_or_charges_twice(
    parley: Parley, llm: LlmControl, marker: str
) -> None:
    session_id = await parley.session()
    path, body = f"/v1/sessions/{session_id}/requests", {"input": f"[[{marker}]]"}
    answers = await asyncio.gather(
        *(parley.call("POST", path, body=body, headers={"idempotency-key": f'"{marker}"'}) for _ in range(10))
    )
    assert {answer.status for answer in answers} == {202}
    assert len({answer.body["id"] for answer in answers}) == 1
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 9
    await parley.wait_ended(answers[0].body["id"])
    assert len(await llm.calls(marker=marker)) == 1
    other = await parley.call("POST", path, body={"input": "other"}, headers={"idempotency-key": marker})
    assert (other.status, other.body["code"]) == (422, "idempotency_key_reused")


async def test_etag_and_prefer_wait(parley: Parley, llm: LlmControl, marker: str) -> None:
    await llm.close_gate(marker, marker)
    request_id = await parley.post(await parley.session(), f"[[{marker}]]")
    await llm.wait("calls >= 1", marker=marker)
    path = f"/v1/requests/{request_id}"
    first = await parley.call("GET", path)
    same = await parley.call("GET", path, headers={"if-none-match": first.headers["ETag"]})
    while same.status == 200:  # progress may still have arrived between the two reads
        first, same = same, await parley.call("GET", path, headers={"if-none-match": same.headers["ETag"]})
    assert same.status == 304
    waiting = asyncio.create_task(
        parley.call("GET", path, headers={"if-none-match": first.headers["ETag"], "prefer": "wait=30"})
    )
    await llm.open_gate(marker)
    changed = await waiting
    assert changed.status == 200
    assert changed.headers["ETag"] != first.headers["ETag"]
    await parley.wait_ended(request_id)


async def test_who_may_not_run_gets_402_and_no_provider_is_called(
    stranger: Account, client_of: Callable[[Account], Parley], llm: LlmControl, marker: str
) -> None:
    client = client_of(stranger)
    session_id = await client.session()
    answer = await client.call("POST", f"/v1/sessions/{session_id}/requests", body={"input": f"[[{marker}]]"})
    assert answer.status == 402
    assert answer.body["code"] == "payment_required"
    assert (answer.body["reason"], answer.body["action_hint"]) == ("no_subscription", "subscribe")
    assert await llm.calls(marker=marker) == []


async def test_a_payload_that_says_active_does_not_convince_when_stripe_says_canceled(
    account: Account, parley: Parley, stripe: StripeControl, llm: LlmControl, marker: str
) -> None:
    await stripe.treat(account.subscription_id, {"object": {"status": "active"}})
    await stripe.change_subscription(account.subscription_id, status="canceled")
    await stripe.wait_delivered()
    decision = await _decision_settles_on(parley, "DENY")
    assert decision["reasons"][0] == "canceled"
    session_id = await parley.session()

    async def is_refused() -> bool:
        # Until the gateway has heard the decision too, requests are accepted and the hold refuses them.
        answer = await parley.call("POST", f"/v1/sessions/{session_id}/requests", body={"input": f"[[{marker}]]"})
        return answer.status == 402 and bool(answer.body["reason"] == "canceled")

    await eventually(is_refused)
    assert await llm.calls(marker=marker) == []


async def _decision_settles_on(parley: Parley, decision: str) -> dict[str, Any]:
    async with asyncio.timeout(GUARD_SECONDS):
        while (answer := await parley.ask("GET", "/v1/eligibility"))["decision"] != decision:
            await asyncio.sleep(0.1)
        found: dict[str, Any] = answer
        return found


async def test_the_eight_statuses_decide_over_http(account: Account, parley: Parley, stripe: StripeControl) -> None:
    expected = {
        "past_due": ("ALLOW_GRACE", "past_due_grace"),
        "trialing": ("ALLOW", "trial_active"),
        "unpaid": ("DENY", "unpaid"),
        "active": ("ALLOW", "active"),
        "paused": ("DENY", "paused_requested"),
        "incomplete": ("DENY", "first_payment_pending"),
        "incomplete_expired": ("DENY", "first_payment_expired"),
        "canceled": ("DENY", "canceled"),
    }
    trial_end = int(time.time()) + 7 * 86_400
    for status, (decision, reason) in expected.items():
        trial = {"trial_end": trial_end} if status == "trialing" else {}
        await stripe.change_subscription(account.subscription_id, status=status, **trial)
        await stripe.wait_delivered()
        async with asyncio.timeout(GUARD_SECONDS):
            while True:
                answer = await parley.ask("GET", "/v1/eligibility")
                if (answer["decision"], answer["reasons"][0]) == (decision, reason):
                    break
                await asyncio.sleep(0.1)


async def test_access_revoked_while_a_turn_runs_lets_it_end(
    account: Account, parley: Parley, stripe: StripeControl, llm: LlmControl, marker: str
) -> None:
    await llm.close_gate(marker, marker)
    session_id = await parley.session()
    running = await parley.post(session_id, f"[[{marker}]]")
    await llm.wait("calls >= 1", marker=marker)
    queued = await parley.post(session_id, f"second [[{marker}-2]]")
    await stripe.change_subscription(account.subscription_id, status="canceled")
    await stripe.wait_delivered()
    await _decision_settles_on(parley, "DENY")
    await llm.open_gate(marker)
    assert (await parley.wait_ended(running))["status"] == "completed"
    refused = await parley.wait_ended(queued)
    assert (refused["status"], refused["error"]["code"]) == ("refused", "canceled")
    assert await llm.calls(marker=f"{marker}-2") == []
