"""What is done about each message: one method per type, each taking a batch."""

from __future__ import annotations

from collections.abc import Sequence

from services.results import proposal
from services.results.proposal import Proposal
from services.results.recorder import Recorder
from shared import tracing
from shared.contracts.gateway import SessionAbandoned
from shared.contracts.message import Message
from shared.contracts.orchestrator import SessionEnded, SessionProgressed
from shared.errors import Unprocessable
from shared.messaging.publisher import Publisher


class Handlers:
    """Endings answer with the stored result, however often they come; progress answers with a hint."""

    def __init__(self, recorder: Recorder, publisher: Publisher, *, output_bytes_max: int) -> None:
        self._recorder = recorder
        self._publisher = publisher
        self._output_bytes_max = output_bytes_max

    async def session_progressed(self, messages: Sequence[SessionProgressed]) -> Sequence[Message]:
        for updated in await self._recorder.record_progress(messages):
            self._publisher.send(updated)
        return []

    async def session_ended(self, messages: Sequence[SessionEnded]) -> Sequence[Message]:
        proposals = [proposal.of_ended(message) for message in messages]
        for proposed in proposals:
            self._check_size(proposed)
        return await self._store(messages, proposals)

    async def session_abandoned(self, messages: Sequence[SessionAbandoned]) -> Sequence[Message]:
        return await self._store(messages, [proposal.of_abandoned(message) for message in messages])

    async def _store(self, messages: Sequence[Message], proposals: Sequence[Proposal]) -> Sequence[Message]:
        with tracing.shared_step("store", [message.traceparent for message in messages]) as steps:
            for step, proposed in zip(steps, proposals, strict=True):
                step.set({"parley.request_id": proposed.request_id, "parley.proposed_status": proposed.status})
            return await self._recorder.record_endings(proposals)

    def _check_size(self, proposed: Proposal) -> None:
        if proposal.output_bytes(proposed.output) > self._output_bytes_max:
            raise Unprocessable(f"output_too_large: more than {self._output_bytes_max} bytes (OUTPUT_BYTES_MAX)")
