"""Turns from the command on the bus to the ending on the bus, against a real broker, database and provider process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from services.orchestrator.config import Settings
from shared.contracts.billing import Eligibility
from shared.contracts.content import CallSettings, MessageItem
from shared.contracts.gateway import SessionRequested
from shared.messaging.owed import OwedPublishes
from tests.component.orchestrator.driver import Orchestrator, cancel_of, command, part, running
from tests.support.bus import eventually


async def test_a_turn_is_held_called_and_ended(orchestrator: Orchestrator) -> None:
    asked = command("hello [[plain]]")
    ended = await orchestrator.end_of(asked)
    assert ended.status == "completed"
    assert ended.output is not None
    assert ended.output.text.startswith("You said: hello")
    assert ended.usage is not None
    assert not ended.usage.estimated
    assert (ended.input, ended.final_attempt) == (asked.input, 1)
    (attempt,) = ended.attempts
    assert (attempt.outcome, attempt.http_status, attempt.deployment) == ("succeeded", 200, "default")
    (hold,) = orchestrator.peers.holds
    assert hold.request_id == asked.request_id
    assert (hold.expires_at - asked.deadline_at).total_seconds() == 2 * asked.grace_seconds


async def test_progress_tells_the_attempt_and_its_text_as_it_comes(orchestrator: Orchestrator) -> None:
    asked = command("hello [[told]]")
    await orchestrator.llm.script("told", {"between_chunks_ms": 60})
    ended = await orchestrator.end_of(asked)
    assert ended.output is not None
    await eventually(lambda: _has_events(orchestrator, asked))
    told = orchestrator.progressed(asked)
    text = "".join(event.text for message in told for event in message.events)
    assert ended.output.text.startswith(text)  # what came last is told by the ending alone
    assert {(message.attempt, message.waiting_on) for message in told} == {(1, None)}
    assert len({message.epoch for message in told}) == 1


async def _has_events(orchestrator: Orchestrator, asked: SessionRequested) -> bool:
    return any(message.events for message in orchestrator.progressed(asked))


async def test_commands_that_arrive_together_share_their_call_to_billing(surroundings: Orchestrator) -> None:
    asked = [command(f"hello {number}") for number in range(8)]
    await surroundings.send(*asked)
    async with running(surroundings.settings):
        await surroundings.ended(8)
    assert len(surroundings.peers.batches) < len(asked)
    assert {hold.request_id for hold in surroundings.peers.holds} == {one.request_id for one in asked}


async def test_a_repeated_command_runs_once_and_is_answered_by_the_same_ending(orchestrator: Orchestrator) -> None:
    asked = command("hello [[repeat]]")
    await orchestrator.llm.close_gate("g", "repeat")
    await orchestrator.send(asked, asked)
    await orchestrator.llm.wait("held >= 1", marker="repeat")
    await orchestrator.send(asked)
    await orchestrator.llm.open_gate("g")
    first = (await orchestrator.ended())[0]
    await orchestrator.send(asked)
    await orchestrator.ended(2)
    bodies = {incoming.body for incoming in orchestrator.endings.heard}
    assert len(bodies) == 1
    assert {incoming.headers["ce-id"] for incoming in orchestrator.endings.heard} == {first.id}
    assert len(await orchestrator.llm.calls(marker="repeat")) == 1


async def test_earlier_turns_are_part_of_the_prompt_and_of_the_hold(orchestrator: Orchestrator) -> None:
    orchestrator.peers.turns = [
        {
            "request_id": f"req_{seq}",
            "seq": seq,
            "status": "completed",
            "input": [{"type": "message", "role": "user", "content": f"question {seq}"}],
            "output_items": [{"type": "message", "role": "assistant", "content": f"answer {seq}"}],
            "ended_at": datetime.now(UTC).isoformat(),
        }
        for seq in (1, 2)
    ]
    asked = command("and now? [[turns]]", seq=3)
    assert (await orchestrator.end_of(asked)).status == "completed"
    (call,) = await orchestrator.llm.calls(marker="turns")
    said = [message["content"] for message in call["messages"]]
    assert said == ["question 1", "answer 1", "question 2", "answer 2", "and now? [[turns]]"]
    assert orchestrator.peers.transcripts_asked == [(asked.session_id, asked.account_id)]
    assert orchestrator.peers.holds[0].tokens == 1024 + -(-sum(len(text) for text in said) // 4)


async def test_a_first_turn_asks_nobody_for_a_transcript(orchestrator: Orchestrator) -> None:
    await orchestrator.end_of(command())
    assert orchestrator.peers.transcripts_asked == []


async def test_a_turn_whose_transcript_cannot_be_read_waits_for_it(orchestrator: Orchestrator) -> None:
    orchestrator.peers.turns = None
    asked = command("later [[transcript]]", seq=2)
    await orchestrator.send(asked)
    await orchestrator.has_state(asked, "backing_off", "retry_backoff")
    assert orchestrator.peers.holds == []
    orchestrator.peers.turns = []
    (ended,) = await orchestrator.ended()
    assert ended.status == "completed"
    assert [(wait.reason, wait.after_attempt) for wait in ended.waits] == [("retry_backoff", 0)]


async def test_a_denied_turn_is_refused_without_a_call(orchestrator: Orchestrator) -> None:
    orchestrator.peers.eligibility = Eligibility(
        decision="DENY", reasons=("payment_past_due",), action_hint="update_payment_method"
    )
    ended = await orchestrator.end_of(command("no [[denied]]"))
    assert (ended.status, ended.attempts, ended.usage, ended.output) == ("refused", (), None, None)
    assert ended.error is not None
    assert ended.error.code == "payment_past_due"
    assert "update_payment_method" in ended.error.message
    assert await orchestrator.llm.calls(marker="denied") == []


async def test_billing_away_makes_the_turn_wait_and_costs_no_attempt(orchestrator: Orchestrator) -> None:
    orchestrator.peers.eligibility = None
    asked = command("wait [[billing]]")
    await orchestrator.send(asked)
    await orchestrator.has_state(asked, "backing_off", "eligibility")
    assert await orchestrator.llm.calls(marker="billing") == []
    orchestrator.peers.eligibility = Eligibility(decision="ALLOW_GRACE", reasons=("past_due_grace",))
    (ended,) = await orchestrator.ended()
    assert (ended.status, len(ended.attempts)) == ("completed", 1)
    assert [wait.reason for wait in ended.waits] == ["eligibility"]

    async def is_told() -> bool:
        return "eligibility" in [message.waiting_on for message in orchestrator.progressed(asked)]

    await eventually(is_told)


async def test_an_indeterminate_answer_is_waited_for_until_the_deadline(orchestrator: Orchestrator) -> None:
    orchestrator.peers.eligibility = Eligibility(decision="INDETERMINATE", reasons=("stripe_unreachable",))
    for seconds in (1.5, 10, 60):
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        ended = await orchestrator.end_of(command(deadline_at=deadline))
        if ended.waits:  # else the machine was so slow that the command arrived too late
            break
    assert (ended.status, ended.attempts) == ("failed", ())
    assert ended.error is not None
    assert ended.error.code == "deadline_exceeded"
    assert "eligibility" in ended.error.message
    assert ended.ended_at >= deadline - timedelta(milliseconds=500), "clocks agree to half a round trip"


async def test_a_command_past_its_deadline_never_runs(orchestrator: Orchestrator) -> None:
    past = datetime.now(UTC) - timedelta(seconds=100)
    ended = await orchestrator.end_of(command("late [[late]]", deadline_at=past))
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "deadline_exceeded")
    assert (orchestrator.peers.holds, await orchestrator.llm.calls(marker="late")) == ([], [])


async def test_an_unknown_model_fails_before_anybody_is_asked(orchestrator: Orchestrator) -> None:
    ended = await orchestrator.end_of(command(settings=CallSettings(model="gone")))
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "model_not_found")
    assert orchestrator.peers.holds == []


async def test_a_response_format_that_cannot_be_checked_fails_before_anybody_is_asked(
    orchestrator: Orchestrator,
) -> None:
    ended = await orchestrator.end_of(command(settings=CallSettings(response_format={"type": "json_schema"})))
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "invalid_response_format")
    assert orchestrator.peers.holds == []


async def test_a_later_turn_ends_the_unfinished_earlier_one(orchestrator: Orchestrator) -> None:
    earlier = command("first [[earlier]]")
    await orchestrator.llm.close_gate("g", "earlier")
    await orchestrator.send(earlier)
    await orchestrator.llm.wait("held >= 1", marker="earlier")
    later = command("second", session_id=earlier.session_id, seq=2)
    await orchestrator.send(later)
    ended = {one.request_id: one for one in await orchestrator.ended(2)}
    assert ended[later.request_id].status == "completed"
    superseded = ended[earlier.request_id]
    assert superseded.error is not None
    assert (superseded.status, superseded.error.code) == ("failed", "superseded_by_later_turn")
    assert [attempt.outcome for attempt in superseded.attempts] == ["cancelled"]
    await orchestrator.llm.wait("client_gone >= 1", marker="earlier")


async def test_a_turn_that_arrives_after_a_later_one_never_runs(orchestrator: Orchestrator) -> None:
    later = command("second", seq=2)
    await orchestrator.end_of(later)
    ended = await orchestrator.end_of(command("first [[old]]", session_id=later.session_id, seq=1))
    assert ended.error is not None
    assert ended.error.code == "superseded_by_later_turn"
    assert await orchestrator.llm.calls(marker="old") == []


async def test_a_cancelled_running_turn_keeps_its_part_and_what_it_used(orchestrator: Orchestrator) -> None:
    asked = command("stop [[stop]]")
    await orchestrator.llm.script("stop", {"kind": "stall", "after_chunks": 3})
    await orchestrator.send(asked)

    async def some_text() -> bool:
        return any(message.events for message in orchestrator.progressed(asked))

    await eventually(some_text)
    await orchestrator.send(cancel_of(asked))
    (ended,) = await orchestrator.ended()
    assert (ended.status, ended.final_attempt) == ("cancelled", 1)
    assert ended.output is not None
    assert ended.output.finish_reason == "cancelled"
    assert ended.output.text.startswith("You said")
    assert ended.usage is not None
    assert ended.usage.estimated
    assert ended.usage.output_tokens > 0
    assert [attempt.outcome for attempt in ended.attempts] == ["cancelled"]
    await orchestrator.llm.wait("client_gone >= 1", marker="stop")


async def test_a_cancel_that_overtakes_its_command_wins(orchestrator: Orchestrator) -> None:
    asked = command("never [[never]]")
    await orchestrator.send(cancel_of(asked))
    (ended,) = await orchestrator.ended()
    assert (ended.status, ended.attempts, ended.usage) == ("cancelled", (), None)
    await orchestrator.send(asked)
    await orchestrator.ended(2)
    assert await orchestrator.llm.calls(marker="never") == []
    assert len({incoming.body for incoming in orchestrator.endings.heard}) == 1


async def test_a_cancelled_waiting_turn_is_free(orchestrator: Orchestrator) -> None:
    orchestrator.peers.eligibility = None
    asked = command()
    await orchestrator.send(asked)
    await orchestrator.has_state(asked, "backing_off", "eligibility")
    await orchestrator.send(cancel_of(asked), cancel_of(asked))
    ended = (await orchestrator.ended())[0]  # a second one repeats it where the two cancels did not share a batch
    assert (ended.status, ended.usage, ended.started_at) == ("cancelled", None, None)
    assert [wait.reason for wait in ended.waits] == ["eligibility"]


async def test_a_cancel_after_the_end_repeats_the_end(orchestrator: Orchestrator) -> None:
    asked = command()
    assert (await orchestrator.end_of(asked)).status == "completed"
    await orchestrator.send(cancel_of(asked))
    await orchestrator.ended(2)
    assert len({incoming.body for incoming in orchestrator.endings.heard}) == 1


async def test_the_deadline_cuts_a_running_call(orchestrator: Orchestrator) -> None:
    for seconds in (1, 10, 60):
        await orchestrator.llm.script("slow", {"kind": "stall", "after_chunks": 3})
        asked = command("slow [[slow]]", deadline_at=datetime.now(UTC) + timedelta(seconds=seconds))
        ended = await orchestrator.end_of(asked)
        if ended.output is not None:  # else the machine was so slow that it came to no text
            break
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "deadline_exceeded")
    assert ended.output is not None
    assert ended.output.finish_reason == "deadline"
    assert [attempt.outcome for attempt in ended.attempts] == ["deadline"]
    await orchestrator.llm.wait("client_gone >= 1", marker="slow")


async def test_more_turns_than_slots_wait_for_one(surroundings: Orchestrator) -> None:
    settings: Settings = surroundings.settings.model_copy(update={"slots": 2})
    asked = [command(f"{number} [[full]]") for number in range(4)]
    await surroundings.llm.close_gate("g", "full")
    async with running(settings):
        await surroundings.send(*asked)
        await surroundings.llm.wait("held >= 2", marker="full")

        async def two_wait() -> bool:
            count: int = await surroundings.database.fetchval("SELECT count(*) FROM tasks WHERE state = 'waiting'")
            return count == 2

        await eventually(two_wait)
        # As many wait as there are slots: the rest stays in the broker.
        more = [command(f"{number} [[more]]") for number in range(3)]
        await surroundings.send(*more)
        await surroundings.llm.open_gate("g")
        ended = await surroundings.ended(7)
    assert {one.status for one in ended} == {"completed"}
    reasons = [wait.reason for one in ended for wait in one.waits]
    assert set(reasons) == {"capacity"}
    assert (await surroundings.llm.ask("GET", "/counters"))["peak_in_flight"] == 2


async def test_an_ending_that_was_never_published_is_published_later(orchestrator: Orchestrator) -> None:
    asked = command()
    await orchestrator.end_of(asked)

    async def marked() -> bool:
        return (await orchestrator.task(asked))["ended_published_at"] is not None

    await eventually(marked)
    await orchestrator.database.execute(
        "UPDATE tasks SET ended_published_at = NULL, finished_at = now() - interval '1 minute'"
    )
    assert orchestrator.app is not None
    await part(orchestrator.app, OwedPublishes).sweep()  # as it does itself every few seconds
    await orchestrator.ended(2)
    assert len({incoming.body for incoming in orchestrator.endings.heard}) == 1


async def test_a_structured_answer_keeps_its_format(orchestrator: Orchestrator) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    settings = CallSettings(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    await orchestrator.llm.script("format", {"text": "nonsense"}, {"text": '{"n": "x"}'}, {"text": '{"n": 1}'})
    asked = command(input=(MessageItem(role="user", content="[[format]]"),), settings=settings)
    ended = await orchestrator.end_of(asked)
    assert ended.output is not None
    assert (ended.status, ended.output.text, ended.final_attempt) == ("completed", '{"n": 1}', 3)
    assert [attempt.outcome for attempt in ended.attempts] == ["invalid_output", "invalid_output", "succeeded"]

    async def told_what_they_had() -> bool:
        told = {1: "", 2: "", 3: ""}
        for message in orchestrator.progressed(asked):
            told[message.attempt] += "".join(event.text for event in message.events)
        return (told[1], told[2]) == ("nonsense", '{"n": "x"}')

    await eventually(told_what_they_had)


async def test_an_answer_that_never_keeps_its_format_fails(orchestrator: Orchestrator) -> None:
    settings = CallSettings(response_format={"type": "json_object"})
    await orchestrator.llm.script("bad", *[{"text": "nonsense"}] * 4)
    ended = await orchestrator.end_of(command("[[bad]]", settings=settings))
    assert ended.error is not None
    assert (ended.status, ended.error.code, len(ended.attempts)) == ("failed", "invalid_output", 3)
