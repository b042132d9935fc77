"""A request is accepted exactly once, in order, and one of its session at a time is handed over."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from shared.contracts.billing import Eligibility, EligibilityChanged, Verdict
from shared.contracts.gateway import SessionRequested
from tests.component.gateway.driver import PAST, Gateway, Reply
from tests.component.gateway.peers import Peers


async def test_a_turn_is_accepted_dispatched_and_ends_as_results_says(gateway: Gateway) -> None:
    listener = await gateway.bus.listen("session.requested")
    session_id = await gateway.new_session(instructions="Be brief.")
    accepted = await gateway.send(session_id, "Why?", temperature=0.5, metadata={"k": "v"})
    assert (accepted["status"], accepted["waiting_on"], accepted["metadata"]) == ("queued", None, {"k": "v"})
    command = SessionRequested.model_validate_json((await listener.wait_for(1))[0].body)
    assert (command.request_id, command.seq, command.input[0].type) == (accepted["id"], 1, "message")
    assert (command.settings.instructions, command.settings.temperature) == ("Be brief.", 0.5)
    assert command.deadline_at - command.accepted_at == timedelta(seconds=600)
    await gateway.end(accepted)
    shown = (await gateway.get(accepted["id"])).body
    assert shown["output"]["text"] == "Hi."
    assert shown["usage"]["total_tokens"] == 7
    assert (shown["status"], shown["poll_after_ms"], shown["cursor"]) == ("completed", None, 2**20 + 2)


async def test_a_202_says_where_to_look_and_when(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    reply = await gateway.call("POST", f"/v1/sessions/{session_id}/requests", {"input": "hello"})
    assert reply.status == 202
    assert reply.headers["Location"] == f"/v1/requests/{reply.body['id']}"
    assert reply.headers["Retry-After"] == "1"
    assert reply.body["poll_after_ms"] == 250
    assert "Idempotent-Replayed" not in reply.headers


async def test_an_input_of_the_greatest_size_is_taken_however_it_is_written(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    path, size = f"/v1/sessions/{session_id}/requests", gateway.settings.input_bytes_max
    taken = await gateway.call("POST", path, raw=b'{"input":"' + b"\\u0001" * size + b'"}')
    assert taken.status == 202
    above = await gateway.call("POST", path, raw=b'{"input":"' + b"\\u0001" * (size + 1) + b'"}')
    assert (above.status, above.code) == (422, "input_too_large")


async def test_fifty_posts_at_once_get_fifty_places_and_one_turn(gateway: Gateway) -> None:
    listener = await gateway.bus.listen("session.requested")
    session_id = await gateway.new_session()
    accepted = await asyncio.gather(*(gateway.send(session_id, f"turn {number}") for number in range(50)))
    assert sorted(request["seq"] for request in accepted) == list(range(1, 51))
    with_turn = [request for request in accepted if request["waiting_on"] is None]
    assert [request["seq"] for request in with_turn] == [1]
    for request in accepted:
        if request["seq"] > 1:
            assert request["queue"] == {"position": request["seq"] - 1}
    commands = await listener.wait_for(1)
    owed = await gateway.database.fetchval("SELECT count(*) FROM requests WHERE dispatched_at IS NOT NULL")
    assert (owed, len(commands)) == (1, 1)


async def test_one_key_at_once_from_many_is_one_request(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    path, headers = f"/v1/sessions/{session_id}/requests", {"Idempotency-Key": "once"}
    replies = await asyncio.gather(
        *(gateway.call("POST", path, {"input": "hello"}, headers=headers) for _ in range(20))
    )
    assert {reply.status for reply in replies} == {202}
    assert len({reply.body["id"] for reply in replies}) == 1
    replayed = [reply for reply in replies if reply.headers.get("Idempotent-Replayed") == "true"]
    assert len(replayed) == 19
    assert await gateway.database.fetchval("SELECT count(*) FROM requests") == 1
    assert await gateway.database.fetchval("SELECT open_requests FROM sessions") == 1


async def test_a_key_means_the_same_quoted_and_bare_and_another_body_is_refused(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    path = f"/v1/sessions/{session_id}/requests"
    first = await gateway.call("POST", path, {"input": "hello"}, headers={"Idempotency-Key": '"k"'})
    again = await gateway.call("POST", path, {"input": "hello"}, headers={"Idempotency-Key": "k"})
    assert again.body["id"] == first.body["id"]
    other = await gateway.call("POST", path, {"input": "hello!"}, headers={"Idempotency-Key": "k"})
    assert (other.status, other.code) == (422, "idempotency_key_reused")
    # The bytes count, not what they mean.
    spaced = await gateway.call("POST", path, raw=b'{"input":"hello"}', headers={"Idempotency-Key": "k"})
    assert (spaced.status, spaced.code) == (422, "idempotency_key_reused")


async def test_a_key_belongs_to_its_session_and_to_its_account(gateway: Gateway) -> None:
    one, two = await gateway.new_session(), await gateway.new_session()
    headers = {"Idempotency-Key": "k"}
    replies = [
        await gateway.call("POST", f"/v1/sessions/{session_id}/requests", {"input": "hello"}, headers=headers)
        for session_id in (one, two)
    ]
    assert replies[0].body["id"] != replies[1].body["id"]
    stranger = await gateway.new_customer()
    mine = await gateway.call("POST", "/v1/sessions", {}, headers=headers)
    theirs = await gateway.call("POST", "/v1/sessions", {}, headers=headers, key=stranger.key)
    assert (mine.status, theirs.status) == (201, 201)
    assert mine.body["id"] != theirs.body["id"]


async def test_a_replay_shows_the_request_as_it_is_by_now(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    path, headers = f"/v1/sessions/{session_id}/requests", {"Idempotency-Key": "k"}
    accepted = (await gateway.call("POST", path, {"input": "hello"}, headers=headers)).body
    await gateway.end(accepted)
    replay = await gateway.call("POST", path, {"input": "hello"}, headers=headers)
    assert (replay.status, replay.headers["Idempotent-Replayed"]) == (202, "true")
    assert (replay.body["id"], replay.body["status"]) == (accepted["id"], "completed")


async def test_a_session_is_made_once_per_key(gateway: Gateway) -> None:
    headers = {"Idempotency-Key": "k"}
    replies = await asyncio.gather(
        *(gateway.call("POST", "/v1/sessions", {"metadata": {"a": "b"}}, headers=headers) for _ in range(10))
    )
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body["id"] for reply in replies}) == 1
    other = await gateway.call("POST", "/v1/sessions", {}, headers=headers)
    assert (other.status, other.code) == (422, "idempotency_key_reused")


async def test_a_full_session_refuses_with_a_time_to_come_back_but_replays_what_it_has(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    path, headers = f"/v1/sessions/{session_id}/requests", {"Idempotency-Key": "first"}
    first = await gateway.call("POST", path, {"input": "hello"}, headers=headers)
    for _ in range(gateway.settings.session_queue_max - 1):
        await gateway.send(session_id)
    before = await gateway.dump()
    refused = await gateway.call("POST", path, {"input": "hello"}, headers={"Idempotency-Key": "other"})
    assert (refused.status, refused.code) == (429, "session_queue_full")
    assert int(refused.headers["Retry-After"]) >= 1
    replay = await gateway.call("POST", path, {"input": "hello"}, headers=headers)
    assert (replay.status, replay.body["id"]) == (202, first.body["id"])
    assert await gateway.dump() == before
    await gateway.end(first.body)
    assert (await gateway.call("POST", path, {"input": "hello"})).status == 202


async def decide(gateway: Gateway, decision: Verdict, *, sequence: int = 1, valid_for: float = 60) -> None:
    """Let the gateway hear a decision, and return once it has stored it and forgotten what it knew of its callers."""
    eligibility = Eligibility(
        decision=decision,
        reasons=("no_subscription",),
        action_hint="subscribe",
        valid_until=datetime.now(UTC) + timedelta(seconds=valid_for),
    )
    account_id = gateway.customer.account_id
    async with gateway.handling("gateway.eligibility", 1):
        await gateway.bus.send(
            EligibilityChanged(account_id=account_id, sequence=sequence, eligibility=eligibility, decided_at=PAST)
        )


async def post(gateway: Gateway, session_id: str, **headers: str) -> Reply:
    return await gateway.call("POST", f"/v1/sessions/{session_id}/requests", {"input": "hello"}, headers=headers)


DENIED = {"decision": "DENY", "reasons": ["no_subscription"], "action_hint": "subscribe"}


async def test_a_denial_that_billing_confirms_is_a_402_with_its_reason(gateway: Gateway, peers: Peers) -> None:
    session_id = await gateway.new_session()
    known = await post(gateway, session_id, **{"Idempotency-Key": "k"})
    await decide(gateway, "DENY")
    peers.eligibility = DENIED
    before = await gateway.dump()
    refused = await post(gateway, session_id)
    assert (refused.status, refused.code) == (402, "payment_required")
    assert (refused.body["reason"], refused.body["action_hint"]) == ("no_subscription", "subscribe")
    # The key is looked up first: what was accepted stays accepted.
    replay = await post(gateway, session_id, **{"Idempotency-Key": "k"})
    assert (replay.status, replay.body["id"]) == (202, known.body["id"])
    assert await gateway.dump() == before


@pytest.mark.parametrize("billing_says", [None, {"decision": "ALLOW", "reasons": []}])
async def test_a_denial_that_billing_does_not_confirm_is_accepted(
    gateway: Gateway, peers: Peers, billing_says: dict[str, object] | None
) -> None:
    session_id = await gateway.new_session()
    await decide(gateway, "DENY")
    peers.eligibility = billing_says
    assert (await post(gateway, session_id)).status == 202


@pytest.mark.parametrize(("decision", "valid_for"), [("INDETERMINATE", 60.0), ("DENY", -1.0)])
async def test_a_copy_that_decides_nothing_leaves_it_to_the_hold(
    gateway: Gateway, peers: Peers, decision: Verdict, valid_for: float
) -> None:
    session_id = await gateway.new_session()
    await decide(gateway, decision, valid_for=valid_for)
    peers.eligibility = DENIED
    peers.asked.clear()
    assert (await post(gateway, session_id)).status == 202
    assert peers.asked == []


async def test_an_account_that_nothing_was_heard_of_is_put_to_billing(gateway: Gateway, peers: Peers) -> None:
    session_id = await gateway.new_session()
    peers.eligibility = DENIED
    assert (await post(gateway, session_id)).status == 402
    peers.eligibility = None
    assert (await post(gateway, session_id)).status == 202


async def test_only_a_newer_decision_replaces_the_copy(gateway: Gateway, peers: Peers) -> None:
    session_id = await gateway.new_session()
    await decide(gateway, "ALLOW", sequence=5)
    await decide(gateway, "DENY", sequence=4)
    peers.eligibility = DENIED
    assert (await post(gateway, session_id)).status == 202
    assert await gateway.database.fetchval("SELECT sequence FROM eligibilities") == 5


async def test_a_deleted_session_takes_no_requests_and_its_running_ones_end(gateway: Gateway) -> None:
    session_id = await gateway.new_session()
    running, waiting = await gateway.send(session_id), await gateway.send(session_id)
    assert (await gateway.call("DELETE", f"/v1/sessions/{session_id}")).status == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/requests"), ("GET", "/messages")):
        assert (await gateway.call(method, f"/v1/sessions/{session_id}{path}")).status == 404
    assert (await post(gateway, session_id)).status == 404
    await gateway.end(running)
    await gateway.end(waiting)
    assert (await gateway.get(waiting["id"])).body["status"] == "completed"
