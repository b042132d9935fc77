"""Answers every hold."""

import argparse
from typing import Any

import asyncpg
from aiohttp import web

from bench.raw.parts import pool, run
from bench.steps.parts import holder_port

_kept: list[Any] = []


class Holder:
    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._database = database

    async def hold(self, request: web.Request) -> web.Response:
        job = await request.json()
        await self._database.fetchval("SELECT id FROM holds WHERE id = $1", job["id"])
        await self._database.execute("INSERT INTO holds (id) VALUES ($1) ON CONFLICT DO NOTHING", job["id"])
        return web.json_response({"id": job["id"], "held": True})


async def serve(arguments: argparse.Namespace) -> None:
    app = web.Application()
    app.add_routes([web.post("/holds", Holder(await pool(arguments.dsn)).hold)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", holder_port()).start()
    _kept.append(runner)


if __name__ == "__main__":
    run(serve)
