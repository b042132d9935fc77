"""The only place that imports opentelemetry: one trace for each request, or nothing where no collector is named.

A span holds names, counts, durations and ids, never a prompt, an output, a key or the words of an exception.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

from opentelemetry import context, trace
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from shared.contracts.message import Message

Value = str | int | float | bool | Sequence[str]
Kind = Literal["internal", "server", "client", "producer", "consumer"]
M = TypeVar("M", bound=Message)

HEADER: Final = "traceparent"
FLUSH_SECONDS_MAX: Final = 3.0
"""How long a process that stops waits for its last spans to be taken: a part of the time it is given to end."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""Nobody asks for their traces."""
_PROPAGATOR: Final = TraceContextTextMapPropagator()


class Span:
    """One step of a request. This one records nothing: it is what everybody gets while tracing is off.

    Started when it is made. In a `with` block it is the current span of the task, and it ends with the block.
    """

    __slots__ = ()

    @property
    def traceparent(self) -> str | None:
        """What makes another step a child of this one, in this process or another, now or later; None while off."""
        return None

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        """Say more about the step; what is None is left out."""

    def fail(self, error_type: str) -> None:
        """Mark it as failed: a class or a code of ours, never a message."""

    def end(self) -> None:
        """Needed outside of a `with` block only."""

    def __enter__(self) -> Span:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        return None


class _RecordedSpan(Span):
    __slots__ = ("_failed", "_span", "_token")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        self._failed = False
        self._token: Any = None

    @property
    def context(self) -> SpanContext:
        return self._span.get_span_context()

    @property
    def traceparent(self) -> str | None:
        return _traceparent_of(self.context)

    def set(self, attributes: Mapping[str, Value | None]) -> None:
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def fail(self, error_type: str) -> None:
        self._failed = True
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        self._span.end()

    def __enter__(self) -> Span:
        self._token = context.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        context.detach(self._token)
        if kind is not None and not self._failed:
            self.fail(kind.__name__)
        self.end()


NO_SPAN: Final = Span()


@dataclass
class _Tracing:
    """What `configure` made; without it every span is NO_SPAN."""

    tracer: trace.Tracer | None = None
    provider: Any = None


_tracing: Final = _Tracing()


def configure(service: str) -> None:
    """Take traces and export them over OTLP/HTTP to OTEL_EXPORTER_OTLP_ENDPOINT.

    The SDK reads that variable and its relatives itself: OTEL_TRACES_SAMPLER (parent-based, and all, by default),
    OTEL_BSP_*, OTEL_EXPORTER_OTLP_HEADERS and so on. The queue is bounded and a thread of the SDK's exports it: a slow
    or absent collector costs spans, never a request.
    """
    # Imported here because most processes trace nothing: the SDK and its exporter cost an eighth of a second and 5 MB.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    named = {"service.name": f"parley-{service}", "service.namespace": "parley"}
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before our own names.
    resource = Resource.create(named | dict(OTELResourceDetector().detect().attributes))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _tracing.provider = provider
    _tracing.tracer = provider.get_tracer("parley")


def shutdown() -> None:
    """Hand over what is left within FLUSH_SECONDS_MAX; spans that the collector has not taken by then are lost."""
    provider, _tracing.provider, _tracing.tracer = _tracing.provider, None, None
    if provider is not None:
        # The SDK's own bounds are longer, and a daemon thread does not keep the process.
        flushing = threading.Thread(target=provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS_MAX)


def span(
    name: str,
    attributes: Mapping[str, Value | None] | None = None,
    *,
    kind: Kind = "internal",
    parent: str | None = None,
    links: Sequence[Span] = (),
) -> Span:
    """A step that begins now, under the step whose `traceparent` is given, else under the current one."""
    tracer = _tracing.tracer
    if tracer is None:
        return NO_SPAN
    started = _RecordedSpan(
        tracer.start_span(
            name,
            context=_context_of(parent) if parent else None,
            kind=SpanKind[kind.upper()],
            links=[Link(other.context) for other in links if isinstance(other, _RecordedSpan)],
            record_exception=False,
            set_status_on_exception=False,
        )
    )
    if attributes:
        started.set(attributes)
    return started


@contextmanager
def shared_step(name: str, parents: Sequence[str | None]) -> Iterator[Sequence[Span]]:
    """A span in each of several traces for one piece of work that is done for all of them together.

    What the work calls belongs to the first of them; the others link to that one.
    """
    if _tracing.tracer is None or not parents:
        yield [NO_SPAN] * len(parents)
        return
    with span(name, parent=parents[0]) as first:
        spans = [first, *(span(name, parent=parent, links=[first]) for parent in parents[1:])]
        try:
            yield spans
        except BaseException as error:
            for each in spans:
                each.fail(type(error).__name__)
            raise
        finally:
            for each in spans[1:]:
                each.end()


@contextmanager
def within(traceparent: str | None) -> Iterator[None]:
    """What is begun inside belongs under that step, whatever the task was doing before; under none where it is None."""
    if _tracing.tracer is None:
        yield
        return
    token = context.attach(_context_of(traceparent))
    try:
        yield
    finally:
        context.detach(token)


def current_traceparent() -> str | None:
    """Of the step under way in this task; None where there is none."""
    if _tracing.tracer is None:
        return None
    return _traceparent_of(trace.get_current_span().get_span_context())


def current_ids() -> tuple[str, str] | None:
    """The ids of the trace and of the span under way, for log lines."""
    if _tracing.tracer is None:
        return None
    found = trace.get_current_span().get_span_context()
    return (f"{found.trace_id:032x}", f"{found.span_id:016x}") if found.is_valid else None


def serving(method: str, route: str, headers: Mapping[str, str]) -> Span:
    """One HTTP call answered by us, under the caller's span where it names one."""
    if _tracing.tracer is None or route in _PROBES:
        return NO_SPAN
    known = method if method in _METHODS else "_OTHER"
    return span(
        f"{known} {route}",
        {"http.request.method": known, "http.route": route},
        kind="server",
        parent=headers.get(HEADER),
    )


def answered(serving_span: Span, status: int) -> None:
    """How it was answered; only what is our fault is an error of the server's."""
    serving_span.set({"http.response.status_code": status})
    if status >= 500:
        serving_span.fail(str(status))


def calling(method: str, peer: str) -> Span:
    """One HTTP call to another service of ours."""
    if _tracing.tracer is None:
        return NO_SPAN
    return span(
        f"{method} {peer}", {"http.request.method": method, "service.peer.name": f"parley-{peer}"}, kind="client"
    )


def outgoing(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """The headers of a call out, with the step under way in them."""
    traceparent = current_traceparent()
    return headers if traceparent is None else {**(headers or {}), HEADER: traceparent}


def inject(headers: MutableMapping[str, Any]) -> None:
    """Let who reads these headers of a message continue the step under way."""
    traceparent = current_traceparent()
    if traceparent is not None:
        headers[HEADER] = traceparent


def publishing(message: Message, exchange: str) -> Span:
    """One publish, under the step that the message names, else under the current one."""
    if _tracing.tracer is None:
        return NO_SPAN
    attributes = _of_message(message, "send", "publish", f"{exchange}:{message.type}")
    return span(f"publish {message.type}", attributes, kind="producer", parent=message.traceparent)


def consuming(message: Message, headers: Mapping[str, Any], exchange: str, queue: str, batch_size: int) -> Span:
    """One delivery from here to its verdict, under its publish.

    A span for each message, not one for the batch with links: a request is to be one trace, and the members of a
    batch have nothing in common but the moment.
    """
    if _tracing.tracer is None or message.best_effort:
        return NO_SPAN
    attributes = _of_message(message, "process", "consume", f"{exchange}:{message.type}:{queue}")
    attributes["parley.batch_size"] = batch_size
    published = headers.get(HEADER)
    parent = published if isinstance(published, str) else None
    return span(f"consume {queue}", attributes, kind="consumer", parent=parent)


def under(step: Span, message: M) -> M:
    """The message as its handler gets it: whatever is done about it belongs under this step."""
    if step.traceparent is None:
        return message
    return message.model_copy(update={HEADER: step.traceparent})


def continued(messages: Sequence[Message], causes: Sequence[Message]) -> Sequence[Message]:
    """What a handler returned, each under the step of the message of the same subject that it answers."""
    if _tracing.tracer is None:
        return messages
    steps = {cause.subject: cause.traceparent for cause in causes}
    return [
        message if message.traceparent else message.model_copy(update={HEADER: steps.get(message.subject)})
        for message in messages
    ]


def _of_message(message: Message, operation_type: str, operation: str, destination: str) -> dict[str, Value | None]:
    return {
        "messaging.system": "rabbitmq",
        "messaging.operation.type": operation_type,
        "messaging.operation.name": operation,
        "messaging.destination.name": destination,
        "messaging.rabbitmq.destination.routing_key": message.type,
        "cloudevents.event_id": message.id,
        "cloudevents.event_subject": message.subject,
    }


def _context_of(traceparent: str | None) -> context.Context:
    # Without `tracestate`: it is free text of whoever called us, and a row keeps the one header only.
    return _PROPAGATOR.extract({HEADER: traceparent} if traceparent else {}, context=context.Context())


def _traceparent_of(found: SpanContext) -> str | None:
    if not found.is_valid:
        return None
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"
