"""The life of one task, from the command to its ending: states, who moves them, and what is known on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from shared.contracts.content import Failure, Outcome, Output, Usage, WaitingOn
from shared.contracts.gateway import SessionCancelRequested, SessionRequested
from shared.contracts.orchestrator import AttemptRecord, SessionEnded, WaitRecord
from shared.errors import IllegalTransition

State = Literal["waiting", "running", "backing_off", "finished"]

NEXT: Final[Mapping[State, frozenset[State]]] = {
    # No slot was free. A claim -> running; a cancel, the deadline sweep or a later turn -> finished.
    "waiting": frozenset({"running", "finished"}),
    # One worker has it under its fence. The runner -> backing_off or finished; a drain -> waiting;
    # the claim of a lost worker's task -> running, under a new fence; a later turn -> finished.
    "running": frozenset({"running", "waiting", "backing_off", "finished"}),
    # Stands still until `due_at`. A claim -> running; a cancel, the deadline sweep or a later turn -> finished.
    "backing_off": frozenset({"running", "finished"}),
    # Carries its outcome and the body of its `session.ended`. They change once at most, before anybody has heard
    # of them: where the broker takes no message of that size.
    "finished": frozenset(),
}

FailureKind = Literal[
    "rate_limited",  # 429 of the kind that passes
    "quota_exhausted",  # 429 or 402 that only the owner of the key can end
    "unauthorized",  # the key is wrong or may not use the model
    "not_found",  # the deployment names a model or path that is not there
    "rejected",  # the provider calls this request invalid
    "server_error",  # 5xx, an error inside the stream, a conflict
    "connect_failed",  # nothing was sent
    "timed_out",  # no first token, or no end, in time
    "stalled",  # silence after the first token
    "cut",  # the connection or stream ended before the answer did
    "malformed",  # not the protocol
    "empty",  # an answer without text, refusal or call
    "too_large",  # more output than we keep
    "invalid_output",  # against the response format
]

AttemptOutcome = FailureKind | Literal["succeeded", "cancelled", "deadline", "worker_lost", "handed_back"]

ATTEMPT_NUMBER_MAX: Final = 1000
WORKERS_LOST_BEFORE_ALONE: Final = 2
WORKERS_LOST_MAX: Final = 5


def moved_to(state: State, target: State) -> State:
    """`target`, if the NEXT table has the move."""
    if target not in NEXT[state]:
        raise IllegalTransition(f"a task cannot move from {state} to {target}")
    return target


@dataclass(frozen=True, slots=True)
class Task:
    """One turn to carry out, with the ledger of what happened to it so far."""

    command: SessionRequested
    fence: int = 1
    tokens: int = 0
    """Estimate of what one attempt uses: held at billing, reserved in the provider's bucket."""
    decision_id: str | None = None
    """Billing's recorded decision that permits the call; without one no attempt starts."""
    workers_lost: int = 0
    cancel_requested: bool = False
    waited_for: WaitingOn | None = None
    """What the task waited for before this claim."""
    attempts: tuple[AttemptRecord, ...] = ()
    waits: tuple[WaitRecord, ...] = ()

    @property
    def request_id(self) -> str:
        return self.command.request_id

    @property
    def last_attempt(self) -> int:
        return self.attempts[-1].attempt if self.attempts else 0


@dataclass(frozen=True, slots=True)
class Finish:
    """The task ends with this outcome."""

    status: Outcome
    error: Failure | None = None
    output: Output | None = None
    usage: Usage | None = None
    final_attempt: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """The task stands still until `until`, for a reason that its owner is told."""

    waiting_on: WaitingOn
    until: datetime


@dataclass(frozen=True, slots=True)
class HandBack:
    """The process stops: another one goes on at once."""


Verdict = Finish | Wait | HandBack


def failed(code: str, message: str) -> Finish:
    return Finish("failed", error=Failure(code=code, message=message))


TOO_LARGE: Final = Failure(code="output_too_large", message="The output is larger than what can be handed on.")
CANCELLED: Final = Failure(code="cancelled", message="The request was cancelled.")
SUPERSEDED: Final = failed(
    "superseded_by_later_turn", "A later turn of the same session arrived before this one ended."
)
TOO_COSTLY: Final = failed(
    "tokens_above_limit", "The request may use more tokens than the providers of its model permit in a minute."
)
LOST_TOO_OFTEN: Final = failed("worker_lost", f"{WORKERS_LOST_MAX} workers were lost while they ran this request.")


def ending(task: Task, finish: Finish, ended_at: datetime) -> SessionEnded:
    """The whole ending, as it is stored, published and repeated."""
    command = task.command
    return SessionEnded(
        request_id=command.request_id,
        account_id=command.account_id,
        session_id=command.session_id,
        seq=command.seq,
        status=finish.status,
        output=finish.output,
        error=finish.error,
        usage=finish.usage,
        input=command.input if finish.status in ("completed", "incomplete") else (),
        model=command.settings.model,
        accepted_at=command.accepted_at,
        started_at=task.attempts[0].started_at if task.attempts else None,
        ended_at=ended_at,
        final_attempt=finish.final_attempt,
        attempts=task.attempts,
        waits=task.waits,
        traceparent=command.traceparent,
    )


def too_large(ended: SessionEnded) -> SessionEnded | None:
    """The ending in place of one that the broker takes no message for; None where that is such an ending already."""
    if ended.output is None and not ended.input:
        return None
    return ended.model_copy(
        update={"status": "failed", "output": None, "error": TOO_LARGE, "usage": None, "input": (), "final_attempt": 0}
    )


def cancelled_before_arrival(command: SessionCancelRequested, at: datetime) -> SessionEnded:
    """The ending of a request whose cancel overtook its command: nothing but its name is known."""
    return SessionEnded(
        request_id=command.request_id,
        account_id=command.account_id,
        session_id=command.session_id,
        seq=command.seq,
        status="cancelled",
        error=CANCELLED,
        input=(),
        model="unknown",
        accepted_at=at,
        ended_at=at,
        traceparent=command.traceparent,
    )
