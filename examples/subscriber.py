"""Hear how every request ends, as another service would: plain aio-pika, a queue of your own, at least once.

    python examples/subscriber.py --queue ext.analytics

A subscriber declares its queue, named `ext.<something>`, and binds it; nothing else. How much such a queue may hold
is the operator's word, so that a subscriber that stands still fills its own queue and never Parley's broker:

    rabbitmqctl set_operator_policy parley-ext '^ext\\.' '{"max-length": 100000, "expires": 604800000}' \\
        --apply-to queues

A message can come more than once, always with the same `ce-id`. This example remembers the last ids in memory; a
subscriber whose effects last stores the id in the same transaction as the effect.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
from collections import OrderedDict
from pathlib import Path

import aio_pika
from aio_pika.abc import AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

EXCHANGE = "parley"
# `result.*` would also bring result.updated, a hint that is sent many times for each request.
ENDINGS = ("result.completed", "result.incomplete", "result.failed", "result.refused", "result.cancelled")
REMEMBERED_MAX = 100_000
LOCAL_ENV = Path(__file__).parents[1] / ".local" / "env"


class SeenIds:
    """The ids of the last messages, to drop repeats."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, ce_id: str) -> bool:
        """Whether it is new."""
        if ce_id in self._ids:
            return False
        self._ids[ce_id] = None
        if len(self._ids) > REMEMBERED_MAX:
            self._ids.popitem(last=False)
        return True


async def declare(connection: aio_pika.abc.AbstractConnection, name: str) -> AbstractQueue:
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=50)
    queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})
    for routing_key in ENDINGS:
        await queue.bind(EXCHANGE, routing_key)
    return queue


def handle(incoming: AbstractIncomingMessage) -> None:
    """Your work goes here. This one prints a line; unknown fields are left alone, since a change may add some."""
    body = json.loads(incoming.body)
    line = {
        "id": incoming.headers["ce-id"],
        "request": body["request_id"],
        "account": body["account_id"],
        "status": body["status"],
        "characters": sum(len(item.get("content", "")) for item in body["output"]["items"]) if body["output"] else 0,
    }
    print(json.dumps(line), flush=True)


async def subscribe(amqp_url: str, queue_name: str, count: int | None) -> None:
    seen = SeenIds()
    connection = await aio_pika.connect_robust(amqp_url)
    async with connection:
        queue = await declare(connection, queue_name)
        print(f"listening on {queue_name}", file=sys.stderr, flush=True)
        async with queue.iterator() as incoming_messages:
            async for incoming in incoming_messages:
                is_new = seen.add(str(incoming.headers["ce-id"]))
                if is_new:
                    handle(incoming)
                # After the work, never before it: a crash in between repeats the message and loses nothing.
                await incoming.ack()
                if is_new and count is not None:
                    count -= 1
                    if count == 0:
                        return


def setting(name: str) -> str:
    """From the environment, or from the file that `make run` writes."""
    if name in os.environ:
        return os.environ[name]
    for word in shlex.split(LOCAL_ENV.read_text(), comments=True) if LOCAL_ENV.exists() else []:
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    raise SystemExit(f"{name} is not set: start Parley with `make run`, or set it yourself")


def main() -> None:
    parser = argparse.ArgumentParser(description="Print how every request ends.")
    parser.add_argument("--queue", default="ext.example", help="a name of your own that begins with ext.")
    parser.add_argument("--count", type=int, help="leave after so many requests")
    arguments = parser.parse_args()
    if not arguments.queue.startswith("ext."):
        parser.error("the name of a subscriber's queue begins with ext.")
    amqp_url = setting("AMQP_URL")
    if not amqp_url.startswith(("amqp://", "amqps://")):
        sys.exit("AMQP_URL is no broker's URL, such as amqp://guest:guest@localhost:5672/")
    try:
        asyncio.run(subscribe(amqp_url, arguments.queue, arguments.count))
    except KeyboardInterrupt:
        sys.exit(130)
    except CONNECTION_EXCEPTIONS as error:
        # Later losses are mended by the library; at the start there may be nothing to wait for.
        sys.exit(f"cannot reach the broker that AMQP_URL names: {error or type(error).__name__}")


if __name__ == "__main__":
    main()
