"""What is sent, and what it is estimated to cost."""

from __future__ import annotations

from services.orchestrator.prompt import TOKENS_MAX, prompt_of
from shared.contracts.content import (
    CallSettings,
    FunctionCallItem,
    FunctionCallOutputItem,
    MessageItem,
    RefusalItem,
)

USER = MessageItem(role="user", content="12345")


def test_an_estimate_is_a_quarter_of_the_bytes_rounded_up_and_the_output_limit() -> None:
    prompt = prompt_of((), (USER,), CallSettings(), 100)
    assert prompt.input_tokens == 2
    assert prompt.tokens == 102


def test_the_requests_own_output_limit_wins() -> None:
    assert prompt_of((), (USER,), CallSettings(max_output_tokens=7), 100).tokens == 9


def test_earlier_turns_come_first_and_count() -> None:
    prompt = prompt_of(
        (MessageItem(role="user", content="1234"), RefusalItem(refusal="1234")), (USER,), CallSettings(), 0
    )
    assert [item.type for item in prompt.items] == ["message", "refusal", "message"]
    assert prompt.tokens == 4


def test_everything_that_is_sent_counts() -> None:
    call = FunctionCallItem(call_id="c", name="name", arguments="args")
    output = FunctionCallOutputItem(call_id="c", output="1234")
    settings = CallSettings(instructions="1234", tools=({"a": 1},), response_format={"b": 2})
    assert prompt_of((), (call, output), settings, 0).input_tokens == -(-(8 + 4 + 4 + 10 + 8) // 4)


def test_text_counts_by_its_bytes() -> None:
    assert prompt_of((), (MessageItem(role="user", content="é" * 4),), CallSettings(), 0).input_tokens == 2


def test_a_call_nobody_counted_is_estimated_and_says_so() -> None:
    usage = prompt_of((), (USER,), CallSettings(), 100).estimated_usage(9)
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (2, 3, True)


def test_an_estimate_stays_within_what_a_hold_can_say() -> None:
    assert prompt_of((), (USER,), CallSettings(max_output_tokens=10**12), 0).tokens == TOKENS_MAX
    assert prompt_of((), (USER,), CallSettings(max_output_tokens=-5), 0).tokens == 2
