"""Proposed endings and what becomes of them."""

from __future__ import annotations

from services.results.proposal import of_abandoned, of_ended, output_bytes, result_of
from shared.contracts.content import FunctionCallItem, MessageItem, Output
from shared.contracts.orchestrator import SessionEnded
from shared.contracts.results import ResultCompleted, ResultFailed
from tests.support.result_messages import abandoned, ended, output_of

REQUEST = "req_" + "c" * 32


def test_a_repeat_that_went_through_json_has_the_same_digest() -> None:
    first = ended(REQUEST, output_of("Blue."))
    repeated = SessionEnded.model_validate_json(first.model_dump_json())
    assert of_ended(first).digest == of_ended(repeated).digest


def test_a_repeat_at_another_place_of_its_trace_has_the_same_digest() -> None:
    first = ended(REQUEST, output_of("Blue."))
    repeated = first.model_copy(update={"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"})
    assert of_ended(first).digest == of_ended(repeated).digest


def test_endings_that_differ_in_anything_have_different_digests() -> None:
    digests = {
        of_ended(ended(REQUEST, output_of("Blue."))).digest,
        of_ended(ended(REQUEST, output_of("Grey."))).digest,
        of_ended(ended(REQUEST, output_of("Blue."), attempt=2)).digest,
        of_abandoned(abandoned(REQUEST)).digest,
    }
    assert len(digests) == 4


def test_a_result_has_the_type_of_its_status() -> None:
    completed = result_of(of_ended(ended(REQUEST, output_of("Blue."))), cursor=7, attempt_heard=1)
    failed = result_of(of_abandoned(abandoned(REQUEST)), cursor=1, attempt_heard=0)
    assert isinstance(completed, ResultCompleted)
    assert isinstance(failed, ResultFailed)
    assert (completed.provider_called, failed.provider_called) == (True, False)


def test_the_size_of_an_output_is_what_was_produced_in_bytes() -> None:
    items = (
        MessageItem(role="assistant", content="é"),
        FunctionCallItem(call_id="call_1", name="weather", arguments="{}"),
    )
    assert output_bytes(Output(items=items, finish_reason="tool_calls")) == 4
    assert output_bytes(None) == 0
