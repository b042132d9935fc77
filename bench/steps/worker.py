"""Has a hold given, calls the provider, and writes before and after."""

import argparse
import json
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from bench.raw import worker as raw
from bench.raw.parts import JOBS, RESULTS, lasting, pool, quorum_queue, run
from bench.steps.parts import holder_port
from shared.http_client import HttpClient

HOLD_SECONDS_MAX = 5
_kept: list[Any] = []


class Worker(raw.Worker):
    def __init__(
        self,
        client: HttpClient,
        llm_url: str,
        exchange: AbstractExchange,
        database: "asyncpg.Pool[asyncpg.Record]",
        holder_url: str,
    ) -> None:
        super().__init__(client, llm_url, exchange)
        self._database = database
        self._holder_url = holder_url

    async def work(self, incoming: AbstractIncomingMessage) -> None:
        job = json.loads(incoming.body)
        await self._client.request(
            "POST",
            self._holder_url,
            headers={"content-type": "application/json"},
            content=incoming.body,
            total_seconds=HOLD_SECONDS_MAX,
        )
        await self._database.execute("INSERT INTO tasks (id) VALUES ($1) ON CONFLICT DO NOTHING", job["id"])
        await incoming.ack()
        result = {"id": job["id"], "output": await self._answer(job["input"])}
        await self._database.execute("UPDATE tasks SET output = $2 WHERE id = $1", result["id"], result["output"])
        await self._exchange.publish(lasting(json.dumps(result).encode()), routing_key=RESULTS)


async def serve(arguments: argparse.Namespace) -> None:
    client = HttpClient()
    await client.start()
    database = await pool(arguments.dsn)
    connection = await aio_pika.connect(arguments.amqp_url)
    publishing, consuming = await connection.channel(), await connection.channel()
    await quorum_queue(publishing, RESULTS)
    jobs = await quorum_queue(consuming, JOBS)
    holder_url = f"http://127.0.0.1:{holder_port()}/holds"
    worker = Worker(client, arguments.llm_url, publishing.default_exchange, database, holder_url)
    await jobs.consume(worker.work)
    _kept.extend([connection, publishing, consuming, jobs, client])


if __name__ == "__main__":
    run(serve)
