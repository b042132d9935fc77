"""Runs one stand-in: a public port, a control port, one ready line, and an orderly end on SIGTERM or SIGINT."""

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

# aiohttp's default of 128 drops connects as soon as a load generator opens a few hundred at once.
BACKLOG = 4096


def parser(prog: str) -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog=prog)
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, default=0, help="port of the imitated API; 0 chooses a free one")
    arguments.add_argument("--control-port", type=int, default=0, help="port of the control API; 0 chooses a free one")
    arguments.add_argument(
        "--log-calls-max", type=int, default=20_000, help="calls kept in the log; the oldest go first"
    )
    return arguments


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int) -> AsyncIterator[int]:
    """Serve the application and give its port; a client that goes away cancels its handler, so it is seen at once."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _serve(build: Callable[[], tuple[web.Application, web.Application]], args: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopped.set)
    public, control = build()
    async with (
        listening(control, args.host, args.control_port) as control_port,
        listening(public, args.host, args.port) as port,
    ):
        print(f"ready port={port} control_port={control_port}", flush=True)
        await stopped.wait()


def run(build: Callable[[], tuple[web.Application, web.Application]], args: argparse.Namespace) -> None:
    """`build` is called inside the event loop and returns the public and the control application."""
    asyncio.run(_serve(build, args))
