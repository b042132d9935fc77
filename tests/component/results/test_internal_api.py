"""The internal HTTP API over what the bus brought."""

from __future__ import annotations

import pytest

from services.results.store import results as store
from services.results.store.logs import PAGE_BYTES_MAX
from shared.contracts.content import Outcome
from shared.ids import new_id
from tests.component.results.conftest import Results
from tests.support.bus import eventually
from tests.support.result_messages import SESSION, ended, output_of, progressed

STRANGER = "acct_" + "f" * 32
ATTEMPT = 2**20


@pytest.fixture
def request_id() -> str:
    return new_id("req")


async def test_progress_is_readable_when_its_update_is_heard(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.updated")
    await results.bus.send(progressed(request_id, 1, ["The ", "sky"]))
    (incoming,) = await heard.wait_for(1)
    assert incoming.headers["ce-id"] == f"result.updated:{request_id}:{ATTEMPT + 2}:"
    page = await results.events(request_id)
    assert [event["data"] for event in page["events"]] == [{"attempt": 1}, {"text": "The "}, {"text": "sky"}]
    assert (page["next"], page["closed"]) == (ATTEMPT + 2, False)


async def test_a_wait_before_the_first_attempt_is_told_and_leaves_the_log_empty(
    results: Results, request_id: str
) -> None:
    heard = await results.bus.listen("result.updated")
    await results.bus.send(progressed(request_id, 0, waiting_on="eligibility"))
    (incoming,) = await heard.wait_for(1)
    assert b'"waiting_on":"eligibility"' in incoming.body
    assert (await results.events(request_id))["events"] == []


async def test_pages_follow_each_other_without_gap_or_overlap(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(progressed(request_id, 1, ["a", "b", "c"]))
    await heard.wait_for(1)  # progress and endings have a queue each: an ending that comes first refuses the progress
    await results.bus.send(ended(request_id, output_of("abc")))
    await heard.wait_for(2)
    cursors: list[int] = []
    page = await results.events(request_id, limit=2)
    while page["events"] and len(cursors) < 10:
        cursors += [event["cursor"] for event in page["events"]]
        assert page["closed"] == (cursors[-1] == ATTEMPT + 4)
        page = await results.events(request_id, after=page["next"], limit=2)
    assert cursors == [ATTEMPT + index for index in range(5)]
    assert page == {"events": [], "next": ATTEMPT + 4, "closed": True}


async def test_a_page_ends_with_the_entry_that_passes_its_bytes(results: Results, request_id: str) -> None:
    text = "x" * (PAGE_BYTES_MAX // 4)
    for index in range(1, 7):
        await results.bus.send(progressed(request_id, 1, [text], first=index))

    async def all_stored() -> bool:
        first = await results.events(request_id)
        return bool((await results.events(request_id, after=first["next"]))["next"] == ATTEMPT + 6)

    await eventually(all_stored)
    page = await results.events(request_id)
    assert page["next"] == ATTEMPT + 4
    assert not page["closed"]


async def test_a_request_nothing_was_heard_of_has_an_empty_log_and_ledger(results: Results, request_id: str) -> None:
    assert await results.events(request_id, after=7) == {"events": [], "next": 7, "closed": False}
    assert (await results.get(f"/internal/requests/{request_id}/ledger"))["status"] is None


async def test_a_bad_cursor_is_refused(results: Results, request_id: str) -> None:
    for after in ("-1", "x", "1.5", "", "%D9%A3", str(2**63), "9" * 5000):
        status, body = await results.call("GET", f"/internal/requests/{request_id}/events?after={after}")
        assert (status, body["code"]) == (400, "invalid_cursor"), after


async def test_a_cursor_beyond_what_was_shown_is_refused_and_the_last_one_is_not(
    results: Results, request_id: str
) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(progressed(request_id, 1, ["a"]))
    await heard.wait_for(1)
    for closed in (False, True):
        last = (await results.events(request_id))["next"]
        assert await results.events(request_id, after=last) == {"events": [], "next": last, "closed": closed}
        status, body = await results.call("GET", f"/internal/requests/{request_id}/events?after={last + 1}")
        assert (status, body["code"]) == (422, "invalid_cursor")
        await results.bus.send(ended(request_id, output_of("ab")))
        await heard.wait_for(2)


async def test_what_belongs_to_another_account_is_not_found(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(ended(request_id, output_of("Secret.")))
    await heard.wait_for(1)
    for path in (
        f"/internal/requests/{request_id}/events",
        f"/internal/requests/{request_id}/ledger",
        f"/internal/sessions/{SESSION}/transcript",
    ):
        status, body = await results.call("GET", path, account_id=STRANGER)
        assert status == 404
        assert "Secret" not in str(body)
        assert (await results.call("GET", path, account_id=None))[0] == 400


async def test_nobody_without_the_service_token_is_answered(results: Results, request_id: str) -> None:
    for method, path in (("GET", f"/internal/requests/{request_id}/events"), ("POST", "/internal/results/lookup")):
        status, body = await results.call(method, path, token="another", body={"request_ids": [request_id]})
        assert (status, body["code"]) == (401, "unauthorized")


async def test_the_transcript_has_both_sides_of_completed_and_incomplete_turns(results: Results) -> None:
    session_id = new_id("ses")
    heard = await results.bus.listen("result.*")
    statuses: tuple[Outcome, ...] = ("completed", "failed", "incomplete", "cancelled", "completed")
    for seq, status in enumerate(statuses, start=1):
        await results.bus.send(
            ended(new_id("req"), output_of(f"Answer {seq}"), status=status, session_id=session_id, seq=seq)
        )
    await heard.wait_for(len(statuses))
    path = f"/internal/sessions/{session_id}/transcript"
    turns = (await results.get(path))["turns"]
    assert [(turn["seq"], turn["status"]) for turn in turns] == [(1, "completed"), (3, "incomplete"), (5, "completed")]
    assert turns[0]["input"][0]["content"] == "Why is the sky blue?"
    assert turns[0]["output_items"][0]["content"] == "Answer 1"
    assert await _seqs(results, f"{path}?order=desc&limit=2") == [5, 3]
    assert await _seqs(results, f"{path}?order=desc&before_seq=5&limit=1") == [3]
    assert await _seqs(results, f"{path}?after_seq=1") == [3, 5]


async def test_turns_and_results_that_are_too_many_bytes_come_in_pages(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PAGE_BYTES_MAX", 10_000)
    session_id = new_id("ses")
    heard = await results.bus.listen("result.*")
    request_ids = [new_id("req") for _ in range(3)]
    for seq, request_id in enumerate(request_ids, start=1):
        await results.bus.send(ended(request_id, output_of("x" * 8_000), session_id=session_id, seq=seq))
    await heard.wait_for(3)
    path = f"/internal/sessions/{session_id}/transcript"
    assert await _seqs(results, path) == [1, 2], "the second turn passes the bound and ends the page"
    assert await _seqs(results, f"{path}?order=desc") == [3, 2]
    _, reply = await results.call("POST", "/internal/results/lookup", body={"request_ids": request_ids})
    assert len(reply["results"]) == 2


async def test_a_lookup_finds_the_results_of_those_that_ended(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(ended(request_id, output_of("Blue.")))
    await heard.wait_for(1)
    body = {"request_ids": [request_id, new_id("req")]}
    status, reply = await results.call("POST", "/internal/results/lookup", account_id=None, body=body)
    assert status == 200
    assert [(result["request_id"], result["type"]) for result in reply["results"]] == [(request_id, "result.completed")]


async def test_a_lookup_of_logs_names_those_that_go_on_after_what_is_known(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    behind, ended_id = new_id("req"), new_id("req")
    for one in (request_id, behind):
        await results.bus.send(progressed(one, 1, ["a", "b"]))
    await results.bus.send(ended(ended_id, output_of("Blue.")))
    await heard.wait_for(3)
    closed_at = (await results.events(ended_id))["next"]
    after = {request_id: ATTEMPT + 2, behind: ATTEMPT + 1, new_id("req"): 0}
    for ended_after, expected in ((closed_at - 1, {behind, ended_id}), (closed_at, {behind})):
        body = {"after": {**after, ended_id: ended_after}}
        status, reply = await results.call("POST", "/internal/logs/lookup", account_id=None, body=body)
        assert (status, set(reply["request_ids"])) == (200, expected)


async def test_a_bad_query_is_refused(results: Results) -> None:
    for query in ("limit=0", "limit=x", "order=random", "before_seq=-1"):
        status, _ = await results.call("GET", f"/internal/sessions/{SESSION}/transcript?{query}")
        assert status == 400, query


async def _seqs(results: Results, path: str) -> list[int]:
    return [turn["seq"] for turn in (await results.get(path))["turns"]]
