"""May this turn run, and with which prompt: the transcript from results, the hold from billing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from pydantic import ValidationError

from services.orchestrator.backoff import full_jitter_seconds, permit_pause_seconds
from services.orchestrator.output_contract import BadResponseFormat, check_response_format, off_loop
from services.orchestrator.prompt import Prompt, prompt_of
from services.orchestrator.routing import Routing
from services.orchestrator.task import Finish, Task, Wait, failed
from shared import tracing
from shared.clock import Clock
from shared.contracts.billing import Eligibility, HoldReplies, HoldReply, HoldRequest, HoldRequests
from shared.contracts.content import Failure, Item
from shared.contracts.gateway import SessionRequested
from shared.contracts.message import Contract
from shared.contracts.orchestrator import WaitRecord
from shared.errors import ParleyError
from shared.group_commit import GroupCommit
from shared.http_client import InternalApi, PeerRefused
from shared.logs import get_logger
from shared.metrics import counter

log = get_logger(__name__)

TURNS_MAX: Final = 100
"""How far back a prompt reaches: the newest turns of the session."""
_ALLOWED: Final = ("ALLOW", "ALLOW_GRACE")

_UNREACHABLE: Final = "unreachable"
_holds = counter(
    "holds_asked",
    f"Answers to holds, by verdict; `{_UNREACHABLE}` where billing gave none.",
    ("verdict",),
    from_zero=[_UNREACHABLE],
)


@dataclass(frozen=True, slots=True)
class Admitted:
    """The turn may run."""

    prompt: Prompt
    decision_id: str


@dataclass(frozen=True, slots=True)
class _Question:
    """A hold to ask for, and the step of the trace that asks."""

    hold: HoldRequest
    traceparent: str | None


class _Turn(Contract):
    input: tuple[Item, ...]
    output_items: tuple[Item, ...] | None = None


class _Transcript(Contract):
    turns: tuple[_Turn, ...]


class Admission:
    """Asks results and billing. Neither being away is an error here: the turn waits."""

    def __init__(self, billing: InternalApi, results: InternalApi, routing: Routing, clock: Clock) -> None:
        self._billing = billing
        self._results = results
        self._routing = routing
        self._clock = clock
        self._single_holds: GroupCommit[_Question, HoldReply | None] = GroupCommit(
            "holds", self._hold, key=lambda question: question.hold.request_id, items_max=256
        )

    async def ask_all(self, commands: Sequence[SessionRequested]) -> list[Admitted | Finish | Wait]:
        """One call to billing for the whole batch; the answers are in the order of the commands."""
        prompts = await asyncio.gather(*(self.prompt(command) for command in commands))
        asked = {
            command.request_id: _question(command, prompt)
            for command, prompt in zip(commands, prompts, strict=True)
            if isinstance(prompt, Prompt)
        }
        replies = dict(zip(asked, await self._hold(list(asked.values())) if asked else (), strict=True))
        return [
            self._judged(command, prompt, replies[command.request_id], ()) if isinstance(prompt, Prompt) else prompt
            for command, prompt in zip(commands, prompts, strict=True)
        ]

    async def ask(self, task: Task) -> Admitted | Finish | Wait:
        """For a turn that had to wait; shares its call to billing with others that ask at the same time."""
        prompt = await self.prompt(task.command)
        if not isinstance(prompt, Prompt):
            return prompt
        reply = await self._single_holds.submit(_question(task.command, prompt))
        return self._judged(task.command, prompt, reply, task.waits)

    async def prompt(self, command: SessionRequested) -> Prompt | Finish | Wait:
        """What the model will read, or why there is nothing to send."""
        model = self._routing.model(command.settings.model)
        if model is None:
            return failed("model_not_found", f"There is no model named {command.settings.model}.")
        try:
            if command.settings.response_format is not None:
                await off_loop(check_response_format, command.settings.response_format)
        except BadResponseFormat as error:
            return failed("invalid_response_format", f"The response format cannot be used: {error}.")
        try:
            with tracing.within(command.traceparent):
                earlier = await self._earlier_turns(command) if command.seq > 1 else ()
        except (ParleyError, ValidationError) as error:
            log.warning("transcript.unreachable", request_id=command.request_id, error=str(type(error).__name__))
            pause = 1.0 + full_jitter_seconds(3, random.random())
            return self._waiting("retry_backoff", command, pause)
        return prompt_of(earlier, command.input, command.settings, model.max_output_tokens)

    async def _earlier_turns(self, command: SessionRequested) -> tuple[Item, ...]:
        try:
            body = await self._results.get(
                f"/internal/sessions/{command.session_id}/transcript",
                account_id=command.account_id,
                params={"before_seq": command.seq, "limit": TURNS_MAX, "order": "desc"},
            )
        except PeerRefused as error:
            # No turn of this session ever ended in results.
            if error.status == 404:
                return ()
            raise
        turns = _Transcript.model_validate_json(body).turns
        return tuple(item for turn in reversed(turns) for item in (*turn.input, *(turn.output_items or ())))

    async def _hold(self, questions: Sequence[_Question]) -> list[HoldReply | None]:
        """None for each where billing gave no usable answer."""
        with tracing.shared_step("hold", [question.traceparent for question in questions]) as steps:
            replies = await self._replies([question.hold for question in questions])
            for step, question, reply in zip(steps, questions, replies, strict=True):
                _describe(step, question.hold, reply)
        return replies

    async def _replies(self, holds: Sequence[HoldRequest]) -> list[HoldReply | None]:
        try:
            body = await self._billing.post("/internal/holds", HoldRequests(holds=tuple(holds)))
            replies = {reply.request_id: reply for reply in HoldReplies.model_validate_json(body).holds}
        except (ParleyError, ValidationError) as error:
            log.warning("billing.unreachable", holds=len(holds), error=type(error).__name__)
            replies = {}
        for hold in holds:
            reply = replies.get(hold.request_id)
            _holds.labels(reply.eligibility.decision if reply else _UNREACHABLE).inc()
        return [replies.get(hold.request_id) for hold in holds]

    def _judged(
        self, command: SessionRequested, prompt: Prompt, reply: HoldReply | None, waits: Sequence[WaitRecord]
    ) -> Admitted | Finish | Wait:
        if reply is None or reply.eligibility.decision == "INDETERMINATE":
            now = self._clock.now()
            first = min((wait.since for wait in waits if wait.reason == "eligibility"), default=now)
            pause = permit_pause_seconds((now - first).total_seconds(), random.random())
            return self._waiting("eligibility", command, pause)
        if reply.eligibility.decision in _ALLOWED:
            return Admitted(prompt, reply.decision_id)
        return Finish("refused", error=_refusal(reply.eligibility))

    def _waiting(self, reason: str, command: SessionRequested, pause_seconds: float) -> Wait:
        # At the deadline there is one more look, which ends it.
        until = min(self._clock.now() + timedelta(seconds=pause_seconds), command.deadline_at)
        return Wait("eligibility" if reason == "eligibility" else "retry_backoff", until)


def _question(command: SessionRequested, prompt: Prompt) -> _Question:
    hold = HoldRequest(
        request_id=command.request_id,
        account_id=command.account_id,
        model=command.settings.model,
        tokens=prompt.tokens,
        expires_at=_hold_expiry(command),
    )
    return _Question(hold, command.traceparent)


def _describe(step: tracing.Span, hold: HoldRequest, reply: HoldReply | None) -> None:
    step.set({"parley.request_id": hold.request_id, "parley.hold.tokens": hold.tokens})
    if reply is None:
        step.fail("billing_unreachable")
    else:
        step.set({"parley.decision": reply.eligibility.decision, "parley.decision_id": reply.decision_id})


def _hold_expiry(command: SessionRequested) -> datetime:
    """Later than any ending can arrive."""
    return command.deadline_at + timedelta(seconds=2 * command.grace_seconds)


def _refusal(eligibility: Eligibility) -> Failure:
    reason = eligibility.reasons[0] if eligibility.reasons else "not_eligible"
    hint = f" What helps: {eligibility.action_hint}." if eligibility.action_hint else ""
    return Failure(code=reason, message=f"The account may not run this request: {reason}.{hint}")
