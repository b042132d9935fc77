"""Third process: keeps the results."""

import argparse
import json
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from bench.raw.parts import RESULTS, SCHEMA, WAKE, pool, quorum_queue, run, wake_queue

IN_FLIGHT_MAX = 100
_kept: list[Any] = []


class Store:
    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", hints: AbstractExchange) -> None:
        self._database = database
        self._hints = hints

    async def keep(self, incoming: AbstractIncomingMessage) -> None:
        result = json.loads(incoming.body)
        await self._database.execute(
            "INSERT INTO jobs (id, output) VALUES ($1, $2) ON CONFLICT DO NOTHING", result["id"], result["output"]
        )
        await incoming.ack()
        await self._hints.publish(aio_pika.Message(result["id"].encode()), routing_key=WAKE)


async def serve(arguments: argparse.Namespace) -> None:
    database = await pool(arguments.dsn)
    await database.execute(SCHEMA)
    connection = await aio_pika.connect(arguments.amqp_url)
    hinting = await connection.channel(publisher_confirms=False)
    await wake_queue(hinting)
    consuming = await connection.channel()
    await consuming.set_qos(prefetch_count=IN_FLIGHT_MAX)
    results = await quorum_queue(consuming, RESULTS)
    await results.consume(Store(database, hinting.default_exchange).keep)
    _kept.extend([connection, hinting, consuming, results])


if __name__ == "__main__":
    run(serve)
