"""What the three processes share: queues, arguments, and a connection each."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable

import aio_pika
import asyncpg
from aio_pika.abc import AbstractChannel, AbstractQueue

JOBS, RESULTS, WAKE = "raw.jobs", "raw.results", "raw.wake"
POOL_MAX = 10
"""As many connections as each of Parley's services has."""
SCHEMA = "CREATE TABLE IF NOT EXISTS jobs (id text PRIMARY KEY, output text NOT NULL)"


async def quorum_queue(channel: AbstractChannel, name: str) -> AbstractQueue:
    return await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})


async def wake_queue(channel: AbstractChannel) -> AbstractQueue:
    return await channel.declare_queue(WAKE, durable=True, arguments={"x-queue-type": "classic"})


def lasting(body: bytes) -> aio_pika.Message:
    return aio_pika.Message(body, content_type="application/json", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


async def pool(dsn: str) -> "asyncpg.Pool[asyncpg.Record]":
    """Like Parley's: no round trip to reset a connection whose session was never changed."""
    return await asyncpg.create_pool(dsn, min_size=1, max_size=POOL_MAX, reset=_keep_session)


async def _keep_session(_connection: object) -> None:
    return None


def run(work: Callable[[argparse.Namespace], Awaitable[None]]) -> None:
    """Runs one process until it is told to end; `work` returns once it serves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--amqp-url", required=True)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--llm-url", required=True)
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_until_told(work, parser.parse_args()))


async def _until_told(work: Callable[[argparse.Namespace], Awaitable[None]], arguments: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await work(arguments)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await stopping.wait()
