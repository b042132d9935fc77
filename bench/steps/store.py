"""Keeps the results, and tells of them."""

import argparse
import json
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from bench.raw.parts import RESULTS, lasting, pool, quorum_queue, run
from bench.steps.parts import ENDED, SCHEMA

_kept: list[Any] = []


class Store:
    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", exchange: AbstractExchange) -> None:
        self._database = database
        self._exchange = exchange

    async def keep(self, incoming: AbstractIncomingMessage) -> None:
        result = json.loads(incoming.body)
        await self._database.execute(
            "INSERT INTO results (id, output) VALUES ($1, $2) ON CONFLICT DO NOTHING", result["id"], result["output"]
        )
        await self._exchange.publish(lasting(incoming.body), routing_key=ENDED)
        await incoming.ack()


async def serve(arguments: argparse.Namespace) -> None:
    database = await pool(arguments.dsn)
    await database.execute(SCHEMA)
    connection = await aio_pika.connect(arguments.amqp_url)
    publishing, consuming = await connection.channel(), await connection.channel()
    await quorum_queue(publishing, ENDED)
    results = await quorum_queue(consuming, RESULTS)
    await results.consume(Store(database, publishing.default_exchange).keep)
    _kept.extend([connection, publishing, consuming, results])


if __name__ == "__main__":
    run(serve)
