"""First process: takes jobs in, and answers for them."""

import argparse
import asyncio
import json
import uuid
from collections import defaultdict
from typing import Any

import aio_pika
import asyncpg
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage
from aiohttp import web

from bench.raw.parts import JOBS, lasting, pool, quorum_queue, run, wake_queue

BACKLOG = 4096
_kept: list[Any] = []
"""Connections and queues that nothing else refers to would be collected."""


class Front:
    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", exchange: AbstractExchange) -> None:
        self._database = database
        self._exchange = exchange
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def post_job(self, request: web.Request) -> web.Response:
        job = {"id": uuid.uuid4().hex, "input": (await request.json())["input"]}
        await self._exchange.publish(lasting(json.dumps(job).encode()), routing_key=JOBS)
        return web.json_response({"id": job["id"], "status": "queued"}, status=202)

    async def get_job(self, request: web.Request) -> web.Response:
        job_id, seconds = request.match_info["id"], float(request.query.get("wait", "0"))
        woken = asyncio.Event()
        self._waiting[job_id].add(woken)
        try:
            output = await self._read(job_id)
            if output is None and seconds > 0:
                await asyncio.wait_for(woken.wait(), seconds)
                output = await self._read(job_id)
        finally:
            self._waiting[job_id].discard(woken)
            if not self._waiting[job_id]:
                del self._waiting[job_id]
        status = "queued" if output is None else "completed"
        return web.json_response({"id": job_id, "status": status, "output": output})

    async def wake(self, incoming: AbstractIncomingMessage) -> None:
        for woken in self._waiting.get(incoming.body.decode(), ()):
            woken.set()

    async def _read(self, job_id: str) -> str | None:
        output: str | None = await self._database.fetchval("SELECT output FROM jobs WHERE id = $1", job_id)
        return output


async def serve(arguments: argparse.Namespace) -> None:
    database = await pool(arguments.dsn)
    connection = await aio_pika.connect(arguments.amqp_url)
    publishing = await connection.channel()
    await quorum_queue(publishing, JOBS)
    front = Front(database, publishing.default_exchange)
    hints = await wake_queue(await connection.channel())
    await hints.consume(front.wake, no_ack=True)
    app = web.Application()
    app.add_routes([web.post("/jobs", front.post_job), web.get("/jobs/{id}", front.get_job)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", arguments.port, backlog=BACKLOG).start()
    _kept.extend([connection, publishing, hints, runner])


if __name__ == "__main__":
    run(serve)
