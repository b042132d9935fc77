"""JSON logs on stdout with the request they belong to; secrets, prompts and outputs are taken out of what is said."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import MappingProxyType, TracebackType
from typing import Any, Final

import structlog
from structlog.typing import FilteringBoundLogger

from shared import tracing
from shared.errors import ParleyError

_SECRET_NAMES: Final = re.compile(
    r"(authorization|api_?key|secret|token|password|pepper|dsn|database_url|amqp_url|cookie|signature)$", re.IGNORECASE
)
_CONTENT_NAMES: Final = frozenset(
    {"input", "output", "prompt", "content", "text", "messages", "instructions", "body", "payload", "delta"}
)
_SECRET_VALUES: Final = re.compile(
    r"(p[ka]_(?:live|test)_\w+|sk-[\w-]{6,}|sk_(?:live|test)_\w+|rk_(?:live|test)_\w+|whsec_[\w+/=]+|Bearer\s+\S+)"
)
_URL_PASSWORD: Final = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]*(?=@)")
_REDACTED: Final = "[redacted]"
_TEXT_LENGTH_MAX: Final = 2000
_PLAIN: Final = (bool, int, float, type(None))

_bound: Final[ContextVar[Mapping[str, object]]] = ContextVar("log_fields", default=MappingProxyType({}))


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose events are `noun.verb` with fields."""
    logger: FilteringBoundLogger = structlog.get_logger(component=name)
    return logger


@contextmanager
def bind(**fields: object) -> Iterator[None]:
    """Put these fields on every line logged inside, in this task and those it starts."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def configure(service: str, level: str) -> None:
    """Send structlog and the standard library's loggers through the same last steps."""
    shared_steps: list[structlog.typing.Processor] = [
        _add_bound,
        _format_exception,
        redact,
        # What is ours alone comes after: there is nothing to take out of it.
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _add_service(service),
        add_trace,
    ]
    structlog.configure(
        processors=[*shared_steps, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared_steps],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    for noisy in ("aio_pika", "aiormq"):  # what matters of theirs is logged by the broker module, once and without URLs
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    logging.basicConfig(level=max(logging.getLevelNamesMapping()[level], logging.WARNING), handlers=[handler])


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out what nobody may read in a log: by the field's name, then by the value's form."""
    for key, value in event.items():
        event[key] = _redact_field(key, value)
    return event


@lru_cache(maxsize=1024)
def _names_secret(key: str) -> bool:
    """Nearly every line has the same names."""
    return _SECRET_NAMES.search(key) is not None


def _redact_field(key: str, value: object) -> object:
    if _names_secret(key):
        return _REDACTED
    if key in _CONTENT_NAMES:
        return (
            f"[{type(value).__name__} of length {len(value)}]" if isinstance(value, str | bytes | list) else _REDACTED
        )
    return redact_value(value)


def redact_value(value: object) -> object:
    """`value` with everything that has the form of a secret replaced, at any depth."""
    if isinstance(value, str):
        text = _URL_PASSWORD.sub(_REDACTED, value) if "://" in value else value
        text = _SECRET_VALUES.sub(_REDACTED, text)
        return text if len(text) <= _TEXT_LENGTH_MAX else f"{text[:_TEXT_LENGTH_MAX]}..."
    if isinstance(value, _PLAIN):  # before Mapping, which takes long to say no
        return value
    if isinstance(value, Mapping):
        return {str(key): _redact_field(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(item) for item in value]
    return redact_value(str(value))


def _add_bound(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**_bound.get(), **event}


def _add_service(service: str) -> structlog.typing.Processor:
    def add(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    return add


def add_trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The step under way, so that a line is found from its trace and the trace from a line."""
    found = tracing.current_ids()
    if found is not None:
        event["trace_id"], event["span_id"] = found
    return event


def _format_exception(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()[1]
    if isinstance(raised, tuple):
        raised = raised[1]
    if isinstance(raised, BaseException):
        event["exception"] = describe_exception(raised)
    return event


def describe_exception(error: BaseException) -> list[str]:
    """Types and places of an exception and its causes. Only our own errors keep their words: a database's or a
    validator's may quote a row or a prompt."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and len(lines) < 40:
        lines.append(_headline(current))
        lines.extend(_frames(current.__traceback__))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return lines


def _headline(error: BaseException) -> str:
    name = type(error).__name__
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate:
        return f"{name} sqlstate={sqlstate} constraint={getattr(error, 'constraint_name', None)}"
    return f"{name}: {error}" if isinstance(error, ParleyError | OSError) else name


def _frames(trace: TracebackType | None) -> list[str]:
    return [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(trace, limit=-6)]
