"""What an attempt's end means: its entry in the ledger, its cost, its settlement, and the verdict on the task."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Final, Literal

from services.orchestrator import backoff
from services.orchestrator.providers.base import Answer, ProviderFailed
from services.orchestrator.records import AttemptEnd
from services.orchestrator.routing import REST_SECONDS, Deployment, Routing
from services.orchestrator.runs import CutReason, Run
from services.orchestrator.task import CANCELLED, AttemptOutcome, Finish, HandBack, Verdict
from shared.clock import Clock
from shared.contracts.content import Failure, MessageItem, Output, Usage
from shared.contracts.orchestrator import AttemptRecord
from shared.logs import get_logger
from shared.metrics import counter, histogram

log = get_logger(__name__)

_attempts = counter("attempts", "Provider calls, by deployment and outcome.", ("deployment", "outcome"))
_first_token_seconds = histogram("first_token_seconds", "From the call to its first text.", ("deployment",))

_INCOMPLETE: Final = {
    "max_output_tokens": "The answer was cut at its token limit.",
    "content_filter": "The provider's content filter cut the answer.",
}


class AttemptLedger:
    """Closes the attempt that a run has open; the end is written with the next write about the task."""

    def __init__(self, routing: Routing, clock: Clock) -> None:
        self._routing = routing
        self._clock = clock
        for deployment in routing.deployment_names:
            for (
                kind
            ) in REST_SECONDS:  # what only a person can mend is an alert, and an increase needs the zero before it
                _attempts.labels(deployment, kind)

    def succeeded(self, run: Run, answer: Answer) -> None:
        self._close(
            run,
            "succeeded",
            usage=answer.usage or _estimate(run),
            http_status=answer.http_status,
            first_token_seconds=answer.first_token_seconds,
        )
        assert run.unwritten is not None
        self._routing.succeeded(run.unwritten.record.deployment)

    def failed(self, run: Run, failure: ProviderFailed) -> None:
        """With a Retry-After the quota domain closes: the close is committed before anybody acts on it."""
        closed_until = None
        if failure.retry_after_seconds is not None:
            seconds = backoff.closed_seconds(failure.retry_after_seconds, len(run.attempts) + 1, random.random())
            closed_until = self._clock.now() + timedelta(seconds=seconds)
        seen = run.progress is not None and run.progress.text_bytes > 0
        self._close(
            run,
            failure.kind,
            usage=failure.usage or (_estimate(run) if seen else None),
            http_status=failure.http_status,
            error_code=failure.error_code,
            retry_after_seconds=failure.retry_after_seconds,
            first_token_seconds=failure.first_token_seconds,
            closed_until=closed_until,
            unused=not failure.billable,
        )

    def stopped(self, run: Run, outcome: Literal["cancelled", "deadline", "handed_back"]) -> Usage | None:
        """We ended the call ourselves. What it used up, where it was made; None where no attempt is open."""
        if run.started is None:
            return None
        usage = _estimate(run) if run.called else None
        self._close(run, outcome, usage=usage, unused=not run.called)
        return usage

    def abandoned(self, run: Run, finish: Finish) -> Finish:
        self.stopped(run, "cancelled")
        return finish

    def _close(
        self,
        run: Run,
        outcome: AttemptOutcome,
        *,
        usage: Usage | None,
        http_status: int | None = None,
        error_code: str | None = None,
        retry_after_seconds: float | None = None,
        first_token_seconds: float | None = None,
        closed_until: datetime | None = None,
        unused: bool = False,
    ) -> None:
        start = run.started
        assert start is not None, "there is an open attempt"
        deployment = self._routing.deployment(start.deployment)
        record = AttemptRecord(
            attempt=start.attempt,
            deployment=start.deployment,
            provider=start.provider,
            upstream_model=start.upstream_model,
            started_at=start.started_at,
            ended_at=max(self._clock.now(), start.started_at),
            outcome=outcome,
            http_status=http_status,
            error_code=error_code,
            retry_after_seconds=retry_after_seconds,
            first_token_seconds=first_token_seconds,
            usage=usage,
            cost_microcents=_cost(deployment, usage),
        )
        # Without usage nobody knows what a call that was made used up: the reservation stays spent.
        back = start.tokens if unused else start.tokens - usage.total_tokens if usage else 0
        run.attempts.append(record)
        run.unwritten = AttemptEnd(run.request_id, run.task.fence, record, deployment.quota_domain, back, closed_until)
        run.started = None
        self._count(record)

    def _count(self, record: AttemptRecord) -> None:
        _attempts.labels(record.deployment, record.outcome).inc()
        if record.first_token_seconds is not None:
            _first_token_seconds.labels(record.deployment).observe(record.first_token_seconds)
        # Of a success the line about its task tells.
        (log.debug if record.outcome == "succeeded" else log.info)(
            "attempt.ended",
            attempt=record.attempt,
            deployment=record.deployment,
            outcome=record.outcome,
            http_status=record.http_status,
            error_code=record.error_code,
            retry_after_seconds=record.retry_after_seconds,
        )


def answered(run: Run, answer: Answer) -> Finish:
    """The verdict on an attempt that gave an answer, or a part of one."""
    last = run.attempts[-1]
    error = None
    if answer.cut_by is not None:
        error = Failure(code=answer.cut_by, message=_INCOMPLETE[answer.cut_by])
    return Finish(
        "completed" if error is None else "incomplete",
        error=error,
        output=answer.output,
        usage=last.usage,
        final_attempt=last.attempt,
    )


def cut_short(run: Run, reason: CutReason, ledger: AttemptLedger) -> Verdict | None:
    """The verdict on a run that was stopped; None where it is not ours to give any more."""
    match reason:
        case "lost":
            return None
        case "handed_back":
            ledger.stopped(run, "handed_back")
            return HandBack()
        case "cancelled":
            return _with_part(run, Finish("cancelled", error=CANCELLED), ledger.stopped(run, "cancelled"), reason)
        case "deadline":
            usage = ledger.stopped(run, "deadline")
            error = backoff.deadline_exceeded(run.attempts, None if run.tried else run.task.waited_for)
            return _with_part(run, Finish("failed", error=error), usage, reason)


def _with_part(run: Run, finish: Finish, usage: Usage | None, reason: Literal["cancelled", "deadline"]) -> Finish:
    """The text that had come when the call was stopped."""
    if usage is None or run.progress is None:
        return finish
    text = run.progress.text
    if not text:
        return Finish(finish.status, error=finish.error, usage=usage)
    output = Output(items=(MessageItem(role="assistant", content=text),), finish_reason=reason)
    return Finish(finish.status, finish.error, output, usage, run.attempts[-1].attempt)


def _estimate(run: Run) -> Usage:
    assert run.prompt is not None
    return run.prompt.estimated_usage(run.progress.text_bytes if run.progress else 0)


def _cost(deployment: Deployment, usage: Usage | None) -> int:
    if usage is None:
        return 0
    return (
        usage.input_tokens * deployment.input_microcents_per_token
        + usage.output_tokens * deployment.output_microcents_per_token
    )
