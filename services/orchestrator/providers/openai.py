"""OpenAI's Chat Completions, streamed, from any server that speaks it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NoReturn

from pydantic import SecretStr

from services.orchestrator.backoff import retry_after_seconds
from services.orchestrator.providers.base import Answer, CallRequest, OnDelta, ProviderFailed
from services.orchestrator.providers.openai_answer import AnswerBuilder, ErrorInStream, Malformed, parse_object
from services.orchestrator.providers.openai_errors import (
    ERROR_BODY_BYTES_MAX,
    code_of,
    error_object,
    kind_in_stream,
    kind_of_status,
)
from services.orchestrator.providers.openai_request import request_body
from services.orchestrator.providers.sse import EventStream, LineTooLong
from services.orchestrator.routing import Deployment
from services.orchestrator.task import FailureKind
from shared.clock import Clock
from shared.http_client import CallFailed, CallFailure, HttpClient, StreamedResponse, Timeouts

_ERROR_BODY_SECONDS: Final = 1.0
_RAW_BYTES_PER_OUTPUT_BYTE: Final = 64
"""Each token comes in a frame of some hundred bytes."""

_KIND_OF_FAILURE: Final[Mapping[CallFailure, FailureKind]] = {
    "connect": "connect_failed",
    "timeout": "timed_out",
    "lost": "cut",
    "protocol": "malformed",
    "too_large": "too_large",
}


@dataclass(frozen=True, slots=True)
class CallBounds:
    """What a deployment's own timeouts fall back to, and how much output is kept."""

    connect_seconds: float
    first_token_seconds: float
    stall_seconds: float
    total_seconds: float
    output_bytes_max: int

    def for_deployment(self, deployment: Deployment) -> CallBounds:
        own = deployment.timeouts
        return CallBounds(
            own.connect_seconds or self.connect_seconds,
            own.first_token_seconds or self.first_token_seconds,
            own.stall_seconds or self.stall_seconds,
            own.total_seconds or self.total_seconds,
            self.output_bytes_max,
        )


class OpenAIProvider:
    """One call per `call`: no retry, no redirect, every wait bounded."""

    def __init__(
        self, client: HttpClient, clock: Clock, *, base_url: str, keys: Mapping[str, SecretStr], bounds: CallBounds
    ) -> None:
        self._client = client
        self._clock = clock
        self._base_url = base_url
        self._keys = keys
        self._bounds = bounds

    async def call(self, request: CallRequest, on_delta: OnDelta) -> Answer:
        bounds = self._bounds.for_deployment(request.deployment)
        call = _Call(self._clock, bounds, on_delta)
        try:
            async with asyncio.timeout(bounds.total_seconds):
                return await self._stream(request, call)
        except TimeoutError:
            return call.answer_or("timed_out")

    async def _stream(self, request: CallRequest, call: _Call) -> Answer:
        deployment = request.deployment
        base_url = (deployment.base_url or self._base_url).rstrip("/")
        try:
            async with (
                asyncio.timeout(call.bounds.first_token_seconds) as silence,
                self._client.stream(
                    "POST",
                    f"{base_url}/chat/completions",
                    headers=self._headers(deployment),
                    content=request_body(deployment.model, request.prompt),
                    # Silence is measured over events, not over bytes: a server that only sends comments is silent.
                    timeouts=Timeouts(call.bounds.connect_seconds, read_seconds=None),
                    body_bytes_max=call.bounds.output_bytes_max * _RAW_BYTES_PER_OUTPUT_BYTE,
                ) as response,
            ):
                return await call.read(response, silence)
        except CallFailed as error:
            return call.answer_or(_KIND_OF_FAILURE[error.kind], billable=error.maybe_sent)
        except TimeoutError:
            return call.answer_or("stalled" if call.builder.begun else "timed_out")

    def _headers(self, deployment: Deployment) -> dict[str, str]:
        return {
            "authorization": f"Bearer {self._keys[deployment.key_variable].get_secret_value()}",
            "content-type": "application/json",
            "accept": "text/event-stream",
        }


class _Call:
    """One call under way: what came so far, and since when."""

    def __init__(self, clock: Clock, bounds: CallBounds, on_delta: OnDelta) -> None:
        self.bounds = bounds
        self.builder = AnswerBuilder(self._delta, bounds.output_bytes_max)
        self._clock = clock
        self._on_delta = on_delta
        self._began = clock.monotonic()
        self._first_token_seconds: float | None = None
        self._status: int | None = None

    async def read(self, response: StreamedResponse, silence: asyncio.Timeout) -> Answer:
        self._status = response.status
        if response.status != 200:
            # What the status and a Retry-After say must not be lost with a body that does not come.
            silence.reschedule(None)
            await self._refused(response)
        try:
            if response.headers.get("content-type", "").startswith("application/json"):
                # Some servers know no streams; what they send is as good.
                self.builder.add_completion(parse_object(await response.read()))
                return self._answer()
            return await self._read_events(response, silence)
        except ErrorInStream as error:
            raise self.failure(kind_in_stream(error.error), code_of(error.error)) from None
        except (Malformed, LineTooLong):
            raise self.failure("malformed") from None

    async def _read_events(self, response: StreamedResponse, silence: asyncio.Timeout) -> Answer:
        stream = EventStream()
        async for chunk in response.chunks():
            events = stream.feed(chunk)
            for data in events:
                if data == b"[DONE]":
                    return self._answer()
                self.builder.add_chunk(parse_object(data))
            # Once for all that came together: each time costs a timer.
            if events and self.builder.begun:
                silence.reschedule(asyncio.get_running_loop().time() + self.bounds.stall_seconds)
        return self.answer_or("cut")

    async def _refused(self, response: StreamedResponse) -> NoReturn:
        error = error_object(await _beginning(response))
        raise self.failure(
            kind_of_status(response.status, error),
            code_of(error),
            retry_after_seconds(response.headers, self._clock.now()),
            billable=False,
        )

    def answer_or(self, kind: FailureKind, *, billable: bool = True) -> Answer:
        """The stream ended without its last word: an answer all the same if the model had already finished."""
        if self.builder.finished:
            return self._answer()
        raise self.failure(kind, billable=billable)

    def _answer(self) -> Answer:
        output = self.builder.output()
        cut_by = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(output.finish_reason)
        if not output.items and cut_by is None:
            raise self.failure("empty")
        return Answer(
            output=output,
            usage=self.builder.usage,
            cut_by=cut_by,  # type: ignore[arg-type]
            http_status=self._status or 200,
            first_token_seconds=self._first_token_seconds,
        )

    def failure(
        self,
        kind: FailureKind,
        error_code: str | None = None,
        retry_after: float | None = None,
        *,
        billable: bool = True,
    ) -> ProviderFailed:
        return ProviderFailed(
            kind,
            http_status=self._status,
            error_code=error_code,
            retry_after_seconds=retry_after,
            first_token_seconds=self._first_token_seconds,
            billable=billable,
        )

    def _delta(self, kind: Literal["output.delta", "refusal.delta"], text: str) -> None:
        if self._first_token_seconds is None:
            self._first_token_seconds = self._clock.monotonic() - self._began
        self._on_delta(kind, text)


async def _beginning(response: StreamedResponse) -> bytes:
    """As much of an error's body as can matter; the status says enough where the rest does not come."""
    body = b""
    try:
        async with asyncio.timeout(_ERROR_BODY_SECONDS):
            async for chunk in response.chunks():
                body += chunk
                if len(body) > ERROR_BODY_BYTES_MAX:
                    break
    except (CallFailed, TimeoutError):
        return body
    return body
