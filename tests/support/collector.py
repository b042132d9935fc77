"""A collector of traces: receives OTLP over HTTP as the real ones do, and keeps every span."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.guard import GUARD_SECONDS


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was exported; ids are hex, `parent_id` is empty for a root."""

    name: str
    service: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    failed: bool
    started_ns: int
    ended_ns: int


@dataclass
class Collector:
    """What came so far. `texts` is all of it in readable form, for whoever looks for what must not be there."""

    url: str
    status: int = 200
    """What exports are answered with."""
    spans: list[ReceivedSpan] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    exports: int = 0
    answers: threading.Event = field(default_factory=threading.Event)
    """While it is not set, exports are taken but not answered."""
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.exports += 1
            self.texts.append(str(request))
            self.spans += _spans_of(request)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[Sequence[ReceivedSpan]], bool]) -> list[ReceivedSpan]:
        """Block until the condition holds of the spans received; run it in a thread."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.spans), GUARD_SECONDS), self.names()
            return list(self.spans)

    def wait_exported(self, count: int) -> None:
        """Block until so many exports came, whatever they were answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.exports >= count, GUARD_SECONDS)

    def names(self) -> list[str]:
        return [f"{span.service}: {span.name}" for span in self.spans]


@contextmanager
def collector() -> Iterator[Collector]:
    """Listens on a free port of this machine, in a thread of its own."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.collector = Collector(f"http://127.0.0.1:{server.server_port}")
    server.collector.answers.set()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    collector: Collector
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        assert self.path == "/v1/traces", self.path
        self.server.collector.take(body)
        self.server.collector.answers.wait()
        self.send_response(self.server.collector.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Silent: pytest shows what matters."""


def _spans_of(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = {pair.key: _value_of(pair.value) for pair in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ReceivedSpan(
                    name=span.name,
                    service=str(resource["service.name"]),
                    kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    attributes={pair.key: _value_of(pair.value) for pair in span.attributes},
                    links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                    failed=span.status.code == span.status.STATUS_CODE_ERROR,
                    started_ns=span.start_time_unix_nano,
                    ended_ns=span.end_time_unix_nano,
                )


def _value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value_of(entry) for entry in value.array_value.values]
    return getattr(value, kind) if kind else None
