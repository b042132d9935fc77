"""Writes asyncapi.yaml (AsyncAPI 3.0) from the message classes, their envelope and the topology."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic.json_schema import models_json_schema

from shared.contracts import billing, gateway, orchestrator, results
from shared.contracts.message import Message
from shared.messaging.topology import EXCHANGE, QUEUES, Queue

ROOT: Final = Path(__file__).parents[1]
FILE: Final = ROOT / "asyncapi.yaml"

_MODULES: Final = (gateway, orchestrator, billing, results)
_AMQP_BINDING_VERSION: Final = "0.3.0"
_SUBSCRIBER_QUEUE: Final = Queue("ext.{subscriber}", ("result.*", "eligibility.changed"))
_WAKE_QUEUE: Final = Queue("gateway.wake.{replica}", ("requests.moved", "result.updated"), "best_effort")
_QUEUE_NOTES: Final = {
    "durable": "A quorum queue: every message is acknowledged once its effect is stored, or parked.",
    "best_effort": "Classic, bounded, drop-head: what is lost is repaired by a later message.",
    _SUBSCRIBER_QUEUE.name: "A subscriber outside Parley declares a durable quorum queue named `ext.<something>` and "
    "binds it; an operator policy on `^ext\\.` bounds its length and ends it when it is left unused.",
    _WAKE_QUEUE.name: "One for each replica of the gateway, expiring when unused: hints for those who wait there.",
}
_DESCRIPTION: Final = (
    "What Parley's services say to each other, and what other services may subscribe to (`result.*`, "
    "`eligibility.changed`). Messages are CloudEvents 1.0 in binary mode over AMQP 0-9-1: attributes in `ce-` headers, "
    "JSON in the body. `ce-id` is the same for every publish of the same fact, so drop duplicates by it and never by "
    "`message_id`. While traces are taken, a `traceparent` header (W3C) continues the request's. Readers ignore fields "
    "they do not know; a change adds a field or a new type."
)


def document() -> dict[str, Any]:
    """The whole description; every message class and every queue is in it."""
    messages = dict(sorted(_message_classes()))
    _, definitions = models_json_schema(
        [(message_class, "serialization") for message_class in messages.values()],
        ref_template="#/components/schemas/{model}",
    )
    queues = (*QUEUES, _WAKE_QUEUE, _SUBSCRIBER_QUEUE)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Parley's bus",
            "version": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
            "description": _DESCRIPTION,
        },
        "defaultContentType": "application/json",
        "servers": {"broker": {"host": "rabbitmq:5672", "protocol": "amqp", "protocolVersion": "0-9-1"}},
        "channels": {
            **{_key(type_): _routing_channel(message_class) for type_, message_class in messages.items()},
            **{_queue_key(queue): _queue_channel(queue, messages) for queue in queues},
        },
        "operations": {
            **{f"send_{_key(type_)}": _send(message_class) for type_, message_class in messages.items()},
            **{f"receive_{_queue_key(queue)}": _receive(queue) for queue in queues},
        },
        "components": {
            "messages": {_key(type_): _message(message_class) for type_, message_class in messages.items()},
            "schemas": {name: _for_asyncapi(schema) for name, schema in definitions["$defs"].items()},
        },
    }


def _message_classes() -> Iterator[tuple[str, type[Message]]]:
    for module in _MODULES:
        for _, found in inspect.getmembers(module, inspect.isclass):
            if issubclass(found, Message) and "type" in vars(found):
                yield found.type, found


def _key(type_: str) -> str:
    return type_.replace(".", "_")


def _queue_key(queue: Queue) -> str:
    return f"queue_{queue.name.replace('.', '_').replace('{', '').replace('}', '')}"


def _routing_channel(message_class: type[Message]) -> dict[str, Any]:
    key = _key(message_class.type)
    return {
        "address": message_class.type,
        "description": f"The routing key of every `{message_class.type}`.",
        "messages": {key: {"$ref": f"#/components/messages/{key}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False},
                "bindingVersion": _AMQP_BINDING_VERSION,
            }
        },
    }


def _queue_channel(queue: Queue, messages: dict[str, type[Message]]) -> dict[str, Any]:
    note = _QUEUE_NOTES.get(queue.name, _QUEUE_NOTES[queue.kind])
    channel: dict[str, Any] = {
        "address": queue.name,
        "description": f"{note} Bound to {', '.join(f'`{binding}`' for binding in queue.bindings)}.",
        "messages": {
            _key(type_): {"$ref": f"#/components/messages/{_key(type_)}"} for type_ in _bound(queue, messages)
        },
        "bindings": {
            "amqp": {
                "is": "queue",
                "queue": {"name": queue.name, "durable": True, "exclusive": False, "autoDelete": False},
                "bindingVersion": _AMQP_BINDING_VERSION,
            }
        },
    }
    if "{" in queue.name:
        parameter = queue.name.partition("{")[2].rstrip("}")
        channel["parameters"] = {parameter: {"description": "A name of the reader's own."}}
    return channel


def _bound(queue: Queue, messages: dict[str, type[Message]]) -> list[str]:
    prefixes = tuple(binding.removesuffix("*") for binding in queue.bindings if binding.endswith(".*"))
    return [type_ for type_ in messages if type_ in queue.bindings or (prefixes and type_.startswith(prefixes))]


def _send(message_class: type[Message]) -> dict[str, Any]:
    owed = "Best effort, unconfirmed." if message_class.best_effort else "Confirmed, and repeated until it is."
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{_key(message_class.type)}"},
        "summary": f"Sent by {message_class.source.rpartition('/')[2]}. {owed}",
        "bindings": {
            "amqp": {
                "deliveryMode": 1 if message_class.best_effort else 2,
                "mandatory": bool(message_class.queues),
                "bindingVersion": _AMQP_BINDING_VERSION,
            }
        },
    }


def _receive(queue: Queue) -> dict[str, Any]:
    service = queue.name.partition(".")[0]
    reader = "a subscriber outside Parley" if service == "ext" else service
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{_queue_key(queue)}"},
        "summary": f"Read by {reader}.",
        "bindings": {"amqp": {"ack": queue.kind == "durable", "bindingVersion": _AMQP_BINDING_VERSION}},
    }


def _message(message_class: type[Message]) -> dict[str, Any]:
    return {
        "name": message_class.type,
        "title": message_class.__name__,
        "summary": inspect.getdoc(message_class),
        "contentType": "application/json",
        "headers": _envelope(message_class),
        "payload": {"$ref": f"#/components/schemas/{message_class.__name__}"},
    }


def _envelope(message_class: type[Message]) -> dict[str, Any]:
    """The CloudEvents attributes as headers."""
    properties = {
        "ce-specversion": {"const": "1.0"},
        "ce-id": {"type": "string", "description": "The same for every publish of the same fact."},
        "ce-source": {"const": message_class.source},
        "ce-type": {"const": message_class.type},
        "ce-subject": {"type": "string", "description": "What it is about: the id of a request or of an account."},
        "ce-time": {"type": "string", "format": "date-time", "description": "When it was published."},
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _for_asyncapi(schema: Any) -> Any:
    """pydantic's `discriminator` is OpenAPI's object; the `const` of each alternative says the same without it."""
    if isinstance(schema, list):
        return [_for_asyncapi(entry) for entry in schema]
    if isinstance(schema, dict):
        return {name: _for_asyncapi(value) for name, value in schema.items() if name != "discriminator"}
    return schema


def text() -> str:
    written: str = yaml.safe_dump(document(), sort_keys=False, width=110, allow_unicode=True)
    return written


if __name__ == "__main__":
    FILE.write_text(text())
