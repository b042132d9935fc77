"""Serves the page and forwards /v1 to Parley from the same origin, adding the key: a browser never holds it.

    .venv/bin/python examples/browser/serve.py        then open http://127.0.0.1:8000

For trying it out on your own machine: whoever can reach this port asks with your key.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from aiohttp import web

HERE = Path(__file__).parent
LOCAL_ENV = HERE.parents[1] / ".local" / "env"
PAGES = {"/": "index.html", "/parley.js": "parley.js"}
FORWARDED = ("Content-Type", "Idempotency-Key", "If-None-Match", "Prefer")
ANSWERED = ("Content-Type", "ETag", "Location", "Retry-After")
UPSTREAM = web.AppKey("upstream", aiohttp.ClientSession)


async def page(request: web.Request) -> web.FileResponse:
    return web.FileResponse(HERE / PAGES[request.path], headers={"Cache-Control": "no-cache"})


async def forward(request: web.Request) -> web.Response:
    """One call with our key. Where Parley is away the page hears 502 and tries again."""
    headers = {name: request.headers[name] for name in FORWARDED if name in request.headers}
    try:
        async with request.app[UPSTREAM].request(
            request.method, request.path_qs, headers=headers, data=await request.read()
        ) as answer:
            kept = {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
            return web.Response(status=answer.status, headers=kept, body=await answer.read())
    except aiohttp.ClientError:
        return web.Response(status=502)


def make_app(parley_url: str, api_key: str) -> web.Application:
    async def upstream(app: web.Application) -> AsyncIterator[None]:
        async with aiohttp.ClientSession(parley_url, headers={"Authorization": f"Bearer {api_key}"}) as session:
            app[UPSTREAM] = session
            yield

    app = web.Application()
    app.cleanup_ctx.append(upstream)
    app.add_routes([web.get(path, page) for path in PAGES])
    app.add_routes([web.route("*", "/v1/{path:.*}", forward)])
    return app


def setting(name: str) -> str:
    """From the environment, or from the file that `make run` writes."""
    if name in os.environ:
        return os.environ[name]
    for word in shlex.split(LOCAL_ENV.read_text(), comments=True) if LOCAL_ENV.exists() else []:
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    raise SystemExit(f"{name} is not set: start Parley with `make run`, or set it yourself")


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the example page, and forward its calls with our key.")
    parser.add_argument("port", type=int, nargs="?", default=8000)
    port = parser.parse_args().port
    app = make_app(setting("PARLEY_URL"), setting("PARLEY_API_KEY"))
    try:
        web.run_app(app, host="127.0.0.1", port=port)
    except (OSError, OverflowError) as error:
        raise SystemExit(f"cannot listen on port {port}: {error}") from None


if __name__ == "__main__":
    main()
