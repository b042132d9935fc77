"""An attempt in its request's trace: OpenTelemetry's GenAI conventions for a client's call, without any content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.orchestrator.providers.base import Answer, ProviderFailed
from services.orchestrator.records import AttemptStart
from services.orchestrator.runs import Cut, Run
from shared import tracing
from shared.contracts.content import Usage

_OPERATION: Final = "chat"


@contextmanager
def attempt_span(run: Run, start: AttemptStart) -> Iterator[tracing.Span]:
    """From the written row to the answer or the failure of the call; what it raises is told by its kind alone."""
    with tracing.span("attempt", kind="client") as step:
        if step is not tracing.NO_SPAN:
            _describe_call(step, run, start)
        try:
            yield step
        except ProviderFailed as failure:
            _describe_failure(step, failure)
            raise
        except Cut as cut:
            step.fail(cut.reason)
            raise


def describe_answer(step: tracing.Span, answer: Answer) -> None:
    step.set(
        {
            "http.response.status_code": answer.http_status,
            "gen_ai.response.finish_reasons": (answer.output.finish_reason,),
            "gen_ai.response.time_to_first_chunk": answer.first_token_seconds,
        }
    )
    _describe_usage(step, answer.usage)


def _describe_call(step: tracing.Span, run: Run, start: AttemptStart) -> None:
    command = run.task.command
    settings = command.settings
    step.set(
        {
            "gen_ai.operation.name": _OPERATION,
            "gen_ai.provider.name": start.provider,
            "gen_ai.request.model": start.upstream_model,
            "gen_ai.request.max_tokens": run.prompt.max_output_tokens if run.prompt else None,
            "gen_ai.request.temperature": settings.temperature,
            "gen_ai.request.stream": True,
            "gen_ai.output.type": "text" if settings.response_format is None else "json",
            "gen_ai.conversation.id": command.session_id,
            "parley.request_id": command.request_id,
            "parley.attempt": start.attempt,
            "parley.deployment": start.deployment,
            "parley.fence": start.fence,
        }
    )


def _describe_failure(step: tracing.Span, failure: ProviderFailed) -> None:
    step.fail(failure.kind)
    step.set(
        {
            "http.response.status_code": failure.http_status,
            "parley.retry_after_seconds": failure.retry_after_seconds,
            "gen_ai.response.time_to_first_chunk": failure.first_token_seconds,
        }
    )
    _describe_usage(step, failure.usage)


def _describe_usage(step: tracing.Span, usage: Usage | None) -> None:
    if usage is not None:
        step.set(
            {
                "gen_ai.usage.input_tokens": usage.input_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_input_tokens,
            }
        )
