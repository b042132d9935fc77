"""Makes the messages that results receives, with everything that a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from shared.contracts.content import Failure, MessageItem, Outcome, Output, RefusalItem, Usage, WaitingOn
from shared.contracts.gateway import SessionAbandoned
from shared.contracts.orchestrator import AttemptRecord, ProgressEvent, SessionEnded, SessionProgressed

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ACCOUNT = "acct_" + "a" * 32
SESSION = "ses_" + "b" * 32
QUESTION = MessageItem(role="user", content="Why is the sky blue?")


def progressed(
    request_id: str,
    attempt: int,
    texts: Sequence[str] = (),
    *,
    first: int = 1,
    epoch: str = "e",
    waiting_on: WaitingOn | None = None,
) -> SessionProgressed:
    """Deltas with the indexes `first`, `first + 1`, ...; without texts an announcement."""
    return SessionProgressed(
        request_id=request_id,
        account_id=ACCOUNT,
        session_id=SESSION,
        seq=1,
        attempt=attempt,
        epoch=epoch,
        at=NOW,
        waiting_on=waiting_on,
        events=tuple(
            ProgressEvent(index=first + place, type="output.delta", at=NOW, text=text)
            for place, text in enumerate(texts)
        ),
    )


def output_of(text: str, refusal: str = "") -> Output:
    message = (MessageItem(role="assistant", content=text),)
    return Output(
        items=(*message, RefusalItem(refusal=refusal)) if refusal else message,
        finish_reason="refusal" if refusal else "stop",
    )


def ended(
    request_id: str,
    output: Output | None,
    *,
    status: Outcome = "completed",
    attempt: int = 1,
    account_id: str = ACCOUNT,
    session_id: str = SESSION,
    seq: int = 1,
    error: Failure | None = None,
) -> SessionEnded:
    return SessionEnded(
        request_id=request_id,
        account_id=account_id,
        session_id=session_id,
        seq=seq,
        status=status,
        output=output,
        error=error,
        usage=Usage(input_tokens=12, output_tokens=34) if output else None,
        input=(QUESTION,),
        model="default",
        accepted_at=NOW,
        started_at=NOW if attempt else None,
        ended_at=NOW,
        final_attempt=attempt,
        attempts=tuple(attempt_record(number) for number in range(1, attempt + 1)),
    )


def attempt_record(number: int) -> AttemptRecord:
    return AttemptRecord(
        attempt=number,
        deployment="main",
        provider="openai",
        upstream_model="gpt-4o-mini",
        started_at=NOW,
        ended_at=NOW,
        outcome="succeeded",
        cost_microcents=7,
    )


def abandoned(request_id: str) -> SessionAbandoned:
    return SessionAbandoned(
        request_id=request_id,
        account_id=ACCOUNT,
        session_id=SESSION,
        seq=1,
        status="failed",
        error=Failure(code="deadline_exceeded", message="The request did not end before its deadline."),
        accepted_at=NOW,
        abandoned_at=NOW,
    )
