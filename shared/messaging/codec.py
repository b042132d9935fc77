"""Messages as CloudEvents 1.0 in binary mode over AMQP 0-9-1: attributes in `ce-` headers, JSON in the body."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika import DeliveryMode
from aio_pika.abc import AbstractIncomingMessage
from aiormq import spec
from cloudevents.core.bindings.rabbitmq import RabbitMQMessage, from_binary_event, to_binary_event
from cloudevents.core.v1.event import CloudEvent
from pydantic import ValidationError

from shared.contracts.message import Message
from shared.errors import Unprocessable

_CONTENT_TYPE: Final = "application/json"
_REQUIRED: Final = ("ce-specversion", "ce-id", "ce-source", "ce-type")
_OURS: Final = frozenset({*_REQUIRED, "ce-subject", "ce-time"})
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


@dataclass(frozen=True, slots=True)
class Encoded:
    """A message in its AMQP form."""

    body: bytes
    headers: dict[str, Any]
    properties: spec.Basic.Properties
    """These headers are in them: what is added there goes out."""


def encode(message: Message) -> Encoded:
    """The driver gives every publish a `message_id` of its own; who drops duplicates compares `ce-id`."""
    event = CloudEvent(
        attributes={
            "id": message.id,
            "source": message.source,
            "type": message.type,
            "subject": message.subject,
            "time": datetime.now(UTC),
            "datacontenttype": _CONTENT_TYPE,
        },
        data=message.model_dump_json(exclude={"traceparent"}).encode(),
    )
    bound = to_binary_event(event)
    headers: dict[str, Any] = dict(bound.headers)
    properties = spec.Basic.Properties(
        headers=headers,
        content_type=bound.content_type,
        message_type=message.type,
        delivery_mode=DeliveryMode.NOT_PERSISTENT if message.best_effort else DeliveryMode.PERSISTENT,
    )
    return Encoded(bound.body, headers, properties)


def decode(incoming: AbstractIncomingMessage, classes: Mapping[str, type[Message]]) -> Message:
    """The message of one delivery; raises Unprocessable with a reason that quotes nothing of the body."""
    event_type = _check_attributes(incoming)
    message_class = classes.get(event_type)
    if message_class is None:
        raise Unprocessable(f"unknown_type: nothing here handles {event_type[:80]!r}")
    try:
        message = message_class.model_validate_json(incoming.body)
    except ValidationError as error:
        raise Unprocessable(f"invalid_body: {_first_problem(error)}") from None
    if incoming.headers.get("ce-subject") != message.subject:
        raise Unprocessable("subject_mismatch: ce-subject names another thing than the body")
    return message


def _check_attributes(incoming: AbstractIncomingMessage) -> str:
    headers = {name: value for name, value in incoming.headers.items() if isinstance(value, str)}
    for name in _REQUIRED:
        if not headers.get(name):
            raise Unprocessable(f"missing_attribute: {name} must be a text that is not empty")
    if (incoming.content_type or "").partition(";")[0].strip().lower() != _CONTENT_TYPE:
        raise Unprocessable("wrong_content_type: the body must be application/json")
    if _is_plain(headers):
        return headers["ce-type"]
    try:
        # The body is checked against its contract afterwards; here only the attributes are.
        event = from_binary_event(RabbitMQMessage(headers, None, b""))
    except Exception as error:  # the library raises many kinds for a bad attribute
        raise Unprocessable(f"invalid_attribute: {type(error).__name__}") from None
    return event.get_type()


def _is_plain(headers: Mapping[str, str]) -> bool:
    """Has the attributes that we write, each in the form in which we write it: the library would find nothing."""
    if headers["ce-specversion"] != "1.0" or not headers.get("ce-subject"):
        return False
    attributes = {name for name in headers if name[:3].lower() == "ce-"}
    if attributes != _OURS or not _TIME.fullmatch(headers["ce-time"]):
        return False
    try:
        datetime.fromisoformat(headers["ce-time"])
    except ValueError:
        return False
    return True


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "body"
    return f"{place}: {problem['type']}"
