"""Takes jobs in, and answers for them."""

import argparse
import asyncio
import json
import uuid
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from aiohttp import web

from bench.raw.parts import JOBS, lasting, pool, quorum_queue, run
from bench.steps.parts import ENDED

_kept: list[Any] = []


class Front:
    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", exchange: AbstractExchange) -> None:
        self._database = database
        self._exchange = exchange
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._publishes: set[asyncio.Task[None]] = set()

    async def post_job(self, request: web.Request) -> web.Response:
        job = {"id": uuid.uuid4().hex, "input": (await request.json())["input"]}
        await self._database.execute("INSERT INTO requests (id, input) VALUES ($1, $2)", job["id"], job["input"])
        publish = asyncio.create_task(self._publish(json.dumps(job).encode()))
        self._publishes.add(publish)
        publish.add_done_callback(self._publishes.discard)
        return web.json_response({"id": job["id"], "status": "queued"}, status=202)

    async def _publish(self, body: bytes) -> None:
        await self._exchange.publish(lasting(body), routing_key=JOBS)

    async def get_job(self, request: web.Request) -> web.Response:
        job_id = request.match_info["id"]
        ended = self._waiting[job_id] = asyncio.get_running_loop().create_future()
        try:
            output = await self._database.fetchval("SELECT output FROM requests WHERE id = $1", job_id)
            if output is None:
                output = await asyncio.wait_for(ended, float(request.query["wait"]))
        finally:
            del self._waiting[job_id]
        return web.json_response({"id": job_id, "status": "completed", "output": output})

    async def end(self, incoming: AbstractIncomingMessage) -> None:
        result = json.loads(incoming.body)
        await self._database.execute("UPDATE requests SET output = $2 WHERE id = $1", result["id"], result["output"])
        ended = self._waiting.get(result["id"])
        if ended is not None and not ended.done():
            ended.set_result(result["output"])
        await incoming.ack()


async def serve(arguments: argparse.Namespace) -> None:
    database = await pool(arguments.dsn)
    connection = await aio_pika.connect(arguments.amqp_url)
    publishing, consuming = await connection.channel(), await connection.channel()
    await quorum_queue(publishing, JOBS)
    front = Front(database, publishing.default_exchange)
    endings = await quorum_queue(consuming, ENDED)
    await endings.consume(front.end)
    app = web.Application()
    app.add_routes([web.post("/jobs", front.post_job), web.get("/jobs/{id}", front.get_job)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
    _kept.extend([connection, publishing, consuming, endings, runner])


if __name__ == "__main__":
    run(serve)
