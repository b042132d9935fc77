"""The first ending wins, the others are kept, and every repeat hears of the stored one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from services.results import proposal
from services.results.event_log import first_cursor
from services.results.recorder import Recorder
from services.results.store.logs import LogStore
from services.results.store.results import ResultStore
from shared.contracts.content import Failure
from shared.ids import new_id
from shared.postgres import Database
from tests.component.results.conftest import OUTPUT_BYTES_MAX, Results
from tests.support.bus import eventually
from tests.support.guard import GUARD_SECONDS
from tests.support.result_messages import NOW, abandoned, attempt_record, ended, output_of, progressed


@pytest.fixture
def request_id() -> str:
    return new_id("req")


async def test_an_ending_is_stored_and_published_whole(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(ended(request_id, output_of("The sky is blue.")))
    (incoming,) = await heard.wait_for(1)
    body = json.loads(incoming.body)
    assert incoming.headers["ce-id"] == f"result.completed:{request_id}"
    assert [item["content"] for item in body["output"]["items"]] == ["The sky is blue."]
    assert (body["status"], body["ended_by"], body["provider_called"]) == ("completed", "session.ended", True)
    page = await results.events(request_id)
    assert page["closed"] and page["next"] == body["cursor"]


async def test_a_redelivered_ending_publishes_the_same_result_again_and_changes_nothing(
    results: Results, request_id: str
) -> None:
    heard = await results.bus.listen("result.*")
    for _ in range(3):
        await results.bus.send(ended(request_id, output_of("Blue.")))
    incoming = await _heard_until_quiet(results, heard, at_least=1)
    assert len({(message.headers["ce-id"], message.body) for message in incoming}) == 1
    ledger = await results.get(f"/internal/requests/{request_id}/ledger")
    assert ledger["late"] == []
    assert await _count_rows(results) == {"results": 1, "late_proposals": 0}


async def test_an_ending_redelivered_later_answers_from_the_stored_row(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(ended(request_id, output_of("Blue.")))
    await heard.wait_for(1)
    await results.bus.send(ended(request_id, output_of("Blue.")))
    first, second = await heard.wait_for(2)
    assert (first.headers["ce-id"], first.body) == (second.headers["ce-id"], second.body)
    assert first.message_id != second.message_id


async def test_a_losing_ending_is_kept_as_late_with_its_cost(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(abandoned(request_id))
    await heard.wait_for(1)
    late = ended(request_id, output_of("Too late."), attempt=2)
    await results.bus.send(late)
    first, second = await heard.wait_for(2)
    assert first.body == second.body, "who proposes late hears how the request ended"
    assert json.loads(first.body)["status"] == "failed"
    ledger = await results.get(f"/internal/requests/{request_id}/ledger")
    assert ledger["ended_by"] == "session.abandoned"
    (kept,) = ledger["late"]
    assert (kept["proposed_by"], kept["status"]) == ("session.ended", "completed")
    assert kept["usage"]["output_tokens"] == 34
    assert [attempt["cost_microcents"] for attempt in kept["attempts"]] == [7, 7]


async def test_a_late_ending_that_is_repeated_is_kept_once(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(ended(request_id, output_of("Blue.")))
    await heard.wait_for(1)
    for count in (2, 3):
        await results.bus.send(abandoned(request_id))
        await heard.wait_for(count)
    assert await _count_rows(results) == {"results": 1, "late_proposals": 1}


async def test_two_different_endings_at_the_same_time_end_the_request_once(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    for text in ("One.", "Two."):
        await results.bus.send(ended(request_id, output_of(text)))

    async def both_stored() -> bool:
        return await _count_rows(results) == {"results": 1, "late_proposals": 1}

    await eventually(both_stored)
    assert len({message.body for message in await heard.wait_for(1)}) == 1


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_a_batch_ends_what_was_heard_of_and_what_was_not_and_keeps_what_is_late(
    results: Results, request_id: str, seconds: float
) -> None:
    """However long the calls took: from that it is only guessed whether anything was heard before."""
    recorder = Recorder(results.database, LogStore(results.database), ResultStore(results.database))
    heard_of = new_id("req")
    await recorder.record_progress([progressed(heard_of, 1, ["The sky ", "is "])])
    proposals = [
        replace(proposal.of_ended(ended(one, output_of(text))), ended_at=NOW + timedelta(seconds=seconds))
        for one, text in ((request_id, "One."), (heard_of, "The sky is blue."), (request_id, "Two."))
    ]
    first = await recorder.record_endings(proposals)
    assert {one.request_id: one.output.text for one in first if one.output} == {
        request_id: "One.",
        heard_of: "The sky is blue.",
    }
    assert await recorder.record_endings(proposals) == first
    assert await _count_rows(results) == {"results": 2, "late_proposals": 1}
    for one, deltas in ((request_id, ["One."]), (heard_of, ["The sky ", "is ", "blue."])):
        page = await results.events(one)
        assert [event["data"]["text"] for event in page["events"] if event["type"] == "output.delta"] == deltas
        assert (page["closed"], [event["cursor"] for event in page["events"]]) == (
            True,
            list(range(first_cursor(1), page["next"] + 1)),
        )


async def test_an_ending_without_a_word_before_it_and_progress_of_the_same_request_have_one_order(
    recorder: Recorder, database: Database
) -> None:
    request_ids = sorted(new_id("req") for _ in range(20))
    async with asyncio.timeout(GUARD_SECONDS), asyncio.TaskGroup() as group:
        for number in range(0, 20, 5):
            some = request_ids[number : number + 10]
            group.create_task(recorder.record_progress([progressed(one, 1, ["Bl"]) for one in reversed(some)]))
            proposals = [proposal.of_ended(ended(one, output_of("Blue."))) for one in some]
            group.create_task(recorder.record_endings(proposals))
    for request_id in request_ids:
        run = await LogStore(database).select_run(request_id, 0, 100)
        assert run is not None and run.closed
        assert "".join(event.text for event in run.events if event.text is not None) == "Blue."


async def test_an_output_over_the_limit_is_parked_and_its_neighbours_are_stored(results: Results) -> None:
    heard = await results.bus.listen("result.*")
    good, bad = new_id("req"), new_id("req")
    await results.bus.send(ended(bad, output_of("x" * (OUTPUT_BYTES_MAX + 1))))
    await results.bus.send(ended(good, output_of("x" * OUTPUT_BYTES_MAX)))
    (incoming,) = await heard.wait_for(1)
    assert json.loads(incoming.body)["request_id"] == good

    async def parked() -> bool:
        reasons = await results.database.fetch("SELECT reason FROM parked_messages")
        return [row["reason"].partition(":")[0] for row in reasons] == ["output_too_large"]

    await eventually(parked)


async def test_an_overdue_request_whose_progress_was_heard_counts_as_called(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(progressed(request_id, 1, ["The"]))
    await heard.wait_for(1)
    await results.bus.send(abandoned(request_id))
    _, incoming = await heard.wait_for(2)
    assert json.loads(incoming.body)["provider_called"] is True
    types = [event["type"] for event in (await results.events(request_id))["events"]]
    assert types == ["attempt.started", "output.delta", "output.superseded", "request.failed"]


async def test_a_refused_request_keeps_its_reason(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.refused")
    error = Failure(code="subscription_required", message="There is no active subscription.")
    await results.bus.send(ended(request_id, None, status="refused", attempt=0, error=error))
    (incoming,) = await heard.wait_for(1)
    body = json.loads(incoming.body)
    assert (body["error"]["code"], body["provider_called"], body["cursor"]) == ("subscription_required", False, 1)


async def test_the_ledger_of_an_ended_request_names_its_attempts(results: Results, request_id: str) -> None:
    heard = await results.bus.listen("result.*")
    await results.bus.send(ended(request_id, output_of("Blue."), attempt=2))
    await heard.wait_for(1)
    ledger = await results.get(f"/internal/requests/{request_id}/ledger")
    assert ledger["attempts"] == [attempt_record(number).model_dump(mode="json") for number in (1, 2)]
    assert ledger["stored_at"] is not None


async def _heard_until_quiet(results: Results, heard: Any, *, at_least: int) -> list[Any]:
    """What was heard once the queue of endings is empty and a further ending has come through behind it."""
    await heard.wait_for(at_least)
    last = new_id("req")

    async def through() -> bool:
        return any(message.headers["ce-subject"] == last for message in heard.heard)

    await results.bus.send(ended(last, None, status="cancelled", attempt=0))
    await eventually(through)
    await results.database.execute("DELETE FROM results WHERE request_id = $1", last)
    return [message for message in heard.heard if message.headers["ce-subject"] != last]


async def _count_rows(results: Results) -> dict[str, int]:
    return {
        table: await results.database.fetchval(f"SELECT count(*) FROM {table}")
        for table in ("results", "late_proposals")
    }
