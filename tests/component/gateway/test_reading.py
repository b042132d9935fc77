"""Lists, transcripts, timelines, and billing's word, as an account reads them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.component.gateway.driver import PAST, Gateway
from tests.component.gateway.peers import Peers


async def pages(gateway: Gateway, path: str, limit: int) -> list[list[Any]]:
    """Every page of a list."""
    found, cursor = [], ""
    while True:
        reply = await gateway.call("GET", f"{path}{'&' if '?' in path else '?'}limit={limit}{cursor}")
        assert reply.status == 200, reply
        found.append(reply.body["data"])
        if reply.body["next"] is None:
            return found
        cursor = f"&cursor={reply.body['next']}"


async def test_a_list_is_read_page_by_page_newest_first(gateway: Gateway) -> None:
    made = [await gateway.new_session() for _ in range(5)]
    found = await pages(gateway, "/v1/sessions", 2)
    assert [len(page) for page in found] == [2, 2, 1]
    assert [session["id"] for page in found for session in page] == made[::-1]


@pytest.mark.parametrize("path", ["/v1/requests", "/v1/sessions/{id}/requests"])
async def test_requests_are_listed_by_status(gateway: Gateway, path: str) -> None:
    session_id = await gateway.new_session()
    requests = [await gateway.send(session_id) for _ in range(4)]
    await gateway.end(requests[0])
    await gateway.end(requests[1], "failed")
    path = path.format(id=session_id)
    everything = [entry["id"] for page in await pages(gateway, path, 3) for entry in page]
    assert everything == [request["id"] for request in requests[::-1]]
    for status, place in (("completed", 0), ("failed", 1)):
        found = await pages(gateway, f"{path}?status={status}", 3)
        assert [[entry["id"] for entry in page] for page in found] == [[requests[place]["id"]]]
    assert len((await pages(gateway, f"{path}?status=queued", 100))[0]) == 2


async def test_a_cursor_of_another_list_is_refused(gateway: Gateway) -> None:
    for _ in range(2):
        await gateway.new_session()
    cursor = (await gateway.call("GET", "/v1/sessions?limit=1")).body["next"]
    reply = await gateway.call("GET", f"/v1/requests?cursor={cursor}")
    assert (reply.status, reply.code) == (422, "invalid_cursor")


def turn(seq: int) -> dict[str, Any]:
    return {
        "request_id": f"req_{seq:032x}",
        "seq": seq,
        "status": "completed",
        "input": [{"type": "message", "role": "user", "content": f"question {seq}"}],
        "output_items": [{"type": "message", "role": "assistant", "content": f"answer {seq}"}],
        "ended_at": PAST.isoformat(),
    }


async def test_the_transcript_shows_the_newest_turns_in_the_order_of_the_talk(gateway: Gateway, peers: Peers) -> None:
    session_id = await gateway.new_session()
    peers.turns = [turn(seq) for seq in (1, 2, 4)]
    found = await pages(gateway, f"/v1/sessions/{session_id}/messages", 2)
    said = [[(entry["item"]["role"], entry["item"]["content"]) for entry in page] for page in found]
    assert said == [
        [("user", "question 2"), ("assistant", "answer 2"), ("user", "question 4"), ("assistant", "answer 4")],
        [("user", "question 1"), ("assistant", "answer 1")],
    ]


async def test_a_timeline_puts_causes_before_effects_whatever_the_clocks_say(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    early = PAST.isoformat()
    attempt = {"attempt": 1, "deployment": "main", "provider": "openai", "upstream_model": "m", "started_at": early}
    peers.ledger = {
        "status": "completed",
        "attempts": [{**attempt, "ended_at": early, "outcome": "rate_limited", "retry_after_seconds": 2.0}],
        "waits": [{"reason": "retry_backoff", "after_attempt": 1, "since": early, "until": early}],
        "stored_at": early,
        "ended_by": "session.ended",
    }
    peers.records = [
        {"at": early, "type": "decision.made", "data": {"decision": "ALLOW"}},
        {"at": early, "type": "hold.settled", "data": {"tokens": 7}},
    ]
    await gateway.end(request)
    timeline = (await gateway.call("GET", f"/v1/requests/{request['id']}/timeline")).body
    types = [entry["type"] for entry in timeline["entries"]]
    assert types[:2] == ["request.accepted", "request.dispatched"]
    assert set(types[2:6]) == {"decision.made", "attempt.started", "attempt.ended", "wait.started"}
    assert types[6] == "result.stored"
    assert set(types[7:]) == {"request.ended", "hold.settled"}
    assert timeline["missing"] == []
    ended = next(entry for entry in timeline["entries"] if entry["type"] == "attempt.ended")
    assert (ended["data"]["outcome"], ended["data"]["retry_after_seconds"]) == ("rate_limited", 2.0)


async def test_in_a_timeline_a_request_ends_after_its_result_was_stored(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    work_ended = datetime.fromisoformat(request["created_at"])
    stored = datetime.now(UTC)
    peers.ledger = {"status": "completed", "stored_at": stored.isoformat(), "ended_by": "session.ended"}
    await gateway.end(request, ended_at=work_ended)
    timeline = (await gateway.call("GET", f"/v1/requests/{request['id']}/timeline")).body
    at = {entry["type"]: datetime.fromisoformat(entry["at"]) for entry in timeline["entries"]}
    assert list(at)[-2:] == ["result.stored", "request.ended"]
    assert at["request.ended"] >= at["result.stored"]
    assert (await gateway.get(request["id"])).body["ended_at"] == request["created_at"], "the work ended then"


async def test_a_timeline_has_every_attempt_and_every_wait(gateway: Gateway, peers: Peers) -> None:
    request = await gateway.send(await gateway.new_session())
    at = PAST.isoformat()
    attempt = {"deployment": "main", "provider": "openai", "upstream_model": "m", "started_at": at, "ended_at": at}
    peers.ledger = {
        "attempts": [{**attempt, "attempt": number, "outcome": "server_error"} for number in (1, 2, 3)],
        "waits": [{"reason": "retry_backoff", "after_attempt": number, "since": at, "until": at} for number in (1, 2)],
    }
    timeline = (await gateway.call("GET", f"/v1/requests/{request['id']}/timeline")).body
    shown = [(entry["type"], entry["data"]) for entry in timeline["entries"]]
    for step in ("attempt.started", "attempt.ended"):
        assert [data["attempt"] for kind, data in shown if kind == step] == [1, 2, 3]
    assert [data["after_attempt"] for kind, data in shown if kind == "wait.started"] == [1, 2]


async def test_a_timeline_of_a_running_request_says_whose_records_come_with_its_end(gateway: Gateway) -> None:
    request = await gateway.send(await gateway.new_session())
    url = f"/v1/requests/{request['id']}/timeline"
    assert (await gateway.call("GET", url)).body["missing"] == ["orchestrator"]
    await gateway.end(request)
    assert (await gateway.call("GET", url)).body["missing"] == []


async def test_a_timeline_shows_the_wait_for_the_turn(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    first, second = await gateway.send(session_id), await gateway.send(session_id)
    url = f"/v1/requests/{second['id']}/timeline"

    async def shown() -> list[tuple[str, str | None]]:
        entries = (await gateway.call("GET", url)).body["entries"]
        return [(entry["type"], entry["data"].get("until")) for entry in entries]

    assert await shown() == [("request.accepted", None), ("wait.started", None)]
    await gateway.end(first)
    *accepted, (dispatched, _) = await shown()
    assert dispatched == "request.dispatched"
    assert accepted[0] == ("request.accepted", None)
    assert accepted[1][0] == "wait.started"
    assert accepted[1][1] is not None


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_a_cursor_that_a_log_has_not_given_is_refused_and_not_waited_at(
    gateway: Gateway, peers: Peers, accept: str
) -> None:
    request = await gateway.send(await gateway.new_session())
    peers.add_event(2**20, "attempt.started", PAST)
    url = f"/v1/requests/{request['id']}/events?after={2**20 + 1}&wait=25"
    answer = await gateway.call("GET", url, headers={"Accept": accept})
    assert (answer.status, answer.body["code"]) == (422, "invalid_cursor")


async def test_eligibility_is_billings_word_and_unknown_while_it_is_away(gateway: Gateway, peers: Peers) -> None:
    peers.eligibility = {"decision": "ALLOW", "reasons": ["active"], "plan": "pro", "remaining": 5}
    body = (await gateway.call("GET", "/v1/eligibility")).body
    assert (body["decision"], body["plan"], body["remaining"]) == ("ALLOW", "pro", 5)
    peers.eligibility = None
    away = await gateway.call("GET", "/v1/eligibility")
    assert (away.status, away.body["decision"]) == (200, "INDETERMINATE")


async def test_usage_is_read_from_billing_in_the_accounts_name(gateway: Gateway, peers: Peers) -> None:
    assert (await gateway.call("GET", "/v1/usage")).body["settled_tokens"] == 7
    account_id = gateway.customer.account_id
    assert peers.asked[-1] == (f"/internal/accounts/{account_id}/usage", account_id)


async def test_a_checkout_is_billings_and_its_refusals_keep_their_codes(gateway: Gateway) -> None:
    wish = {"plan": "pro", "success_url": "https://app.example/ok", "cancel_url": "https://app.example/no"}
    reply = await gateway.call("POST", "/v1/billing/checkout", wish)
    assert (reply.status, reply.body) == (200, {"url": "https://stripe.example/pay"})
    refused = await gateway.call("POST", "/v1/billing/checkout", {**wish, "plan": "gold"})
    assert (refused.status, refused.code) == (422, "plan_not_found")
    scripted = await gateway.call("POST", "/v1/billing/checkout", {**wish, "success_url": "javascript:alert(1)"})
    assert (scripted.status, scripted.code) == (422, "invalid_request")
