"""What the orchestrator does with each message it receives; the return value is published before the ack."""

from __future__ import annotations

from collections.abc import Sequence

from services.orchestrator.closing import Closing
from services.orchestrator.intake import Intake
from shared.contracts.gateway import SessionCancelRequested, SessionRequested
from shared.contracts.message import Message


class Handlers:
    """One method per message."""

    def __init__(self, intake: Intake, closing: Closing) -> None:
        self._intake = intake
        self._closing = closing

    async def session_requested(self, commands: Sequence[SessionRequested]) -> Sequence[Message]:
        return await self._intake.take(commands)

    async def session_cancel_requested(self, commands: Sequence[SessionCancelRequested]) -> Sequence[Message]:
        return await self._closing.cancel(commands)
