"""An answer that is larger than the broker's max_message_size still ends its request."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from shared.contracts.content import CallSettings
from tests.component.orchestrator.driver import Orchestrator, command
from tests.support.bus import eventually
from tests.support.servers import Vhosts


@pytest.fixture
async def amqp_url(narrow_vhosts: Vhosts) -> AsyncIterator[str]:
    async with narrow_vhosts.with_queues() as url:
        yield url


async def test_an_answer_that_no_message_can_carry_fails_its_request_once(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("large", {"text": "x" * 100_000})
    large = command("[[large]]", settings=CallSettings(max_output_tokens=100_000))
    small = command("[[small]]")
    await orchestrator.send(large, small)
    ended = {ending.request_id: ending for ending in await orchestrator.ended(2)}
    failed = ended[large.request_id]
    assert (failed.status, failed.error and failed.error.code) == ("failed", "output_too_large")
    assert (failed.output, failed.usage, failed.input) == (None, None, ())
    assert [attempt.outcome for attempt in failed.attempts] == ["succeeded"]
    assert ended[small.request_id].status == "completed"

    async def is_marked() -> bool:
        return (await orchestrator.task(large))["ended_published_at"] is not None

    await eventually(is_marked)
    task = await orchestrator.task(large)
    assert (task["state"], task["outcome"], task["fence"]) == ("finished", "failed", 1)
    # A repeat of the command hears the same ending.
    assert (await orchestrator.end_of(large)) == failed
