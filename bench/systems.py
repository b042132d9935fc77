"""The two systems as a client sees them."""

import asyncio
import itertools
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from bench.raw.pipeline import RawPipeline
from bench.statements import connect
from deploy.local.daemon import Daemon
from deploy.local.environment import SERVICES
from deploy.local.seed import Account
from deploy.local.servers.find import DSN_NAMES
from deploy.local.stack import Stack

INPUT = "Please explain in a few plain words what a lease is, when somebody needs one, and what happens when it ends. "
WAIT_SECONDS = 30
SETTLE_SECONDS = 120
SETTLE_POLL_SECONDS = 0.05
SESSIONS_AT_A_TIME = 32
_LEFT_TO_DO: Mapping[str, str] = {
    "gateway": "SELECT EXISTS (SELECT FROM requests WHERE requested_owed_at IS NOT NULL)",
    "orchestrator": "SELECT EXISTS (SELECT FROM tasks WHERE state = 'finished' AND ended_published_at IS NULL)",
    "billing": "SELECT EXISTS (SELECT FROM holds WHERE state = 'held')",
}


class Parley:
    """A place is a session of its own, so that no request waits for another's turn."""

    name = "parley"

    def __init__(self, stack: Stack, accounts: Sequence[Account]) -> None:
        self.stack = stack
        self._keys = [account.key for account in accounts]
        self.retries = 0
        self._url = stack.url("gateway")

    async def make_places(self, http: aiohttp.ClientSession, count: int) -> Sequence[str]:
        keys = itertools.islice(itertools.cycle(self._keys), count)
        limit = asyncio.Semaphore(SESSIONS_AT_A_TIME)

        async def make(key: str) -> str:
            async with limit, http.post(f"{self._url}/v1/sessions", json={}, headers=_bearer(key)) as answer:
                answer.raise_for_status()
                return f"{key} {(await answer.json())['id']}"

        return await asyncio.gather(*map(make, keys))

    async def post(self, http: aiohttp.ClientSession, place: str) -> str:
        _, session_id = place.split()
        headers = {"idempotency-key": uuid.uuid4().hex}
        accepted = await self._ask(
            http, "POST", place, f"/v1/sessions/{session_id}/requests", headers, {"input": INPUT}
        )
        request_id: str = accepted["id"]
        return request_id

    async def poll(self, http: aiohttp.ClientSession, place: str, request_id: str) -> None:
        while True:
            snapshot = await self._ask(
                http, "GET", place, f"/v1/requests/{request_id}", {"prefer": f"wait={WAIT_SECONDS}"}
            )
            if snapshot["status"] == "completed":
                return
            if snapshot["status"] not in ("queued", "in_progress"):
                raise RuntimeError(f"{request_id} ended as {snapshot['status']}: {snapshot['error']}")

    async def _ask(
        self,
        http: aiohttp.ClientSession,
        method: str,
        place: str,
        path: str,
        headers: Mapping[str, str],
        body: object = None,
    ) -> Any:
        """As every client should: asked to come back, it does, with the same key."""
        key, _ = place.split()
        while True:
            async with http.request(method, self._url + path, json=body, headers={**_bearer(key), **headers}) as answer:
                if answer.status != 503:
                    answer.raise_for_status()
                    return await answer.json()
            self.retries += 1
            await asyncio.sleep(float(answer.headers["Retry-After"]))

    async def until_settled(self) -> None:
        async with asyncio.timeout(SETTLE_SECONDS):
            await asyncio.gather(*(self._until_done(service, sql) for service, sql in _LEFT_TO_DO.items()))

    async def _until_done(self, service: str, sql: str) -> None:
        connection = await connect(self.stack.urls[DSN_NAMES[service]])
        try:
            while await connection.fetchval(sql):  # noqa: ASYNC110 - it is asked of another process
                await asyncio.sleep(SETTLE_POLL_SECONDS)
        finally:
            await connection.close()

    def pids(self) -> dict[str, int]:
        pids = {name: Daemon(self.stack.root / "run" / f"{name}.pid").pid() for name in SERVICES}
        return {name: pid for name, pid in pids.items() if pid is not None}


class Raw:
    """The raw pipeline, or one built of its parts. It knows no sessions: every place is the same."""

    def __init__(self, pipeline: RawPipeline) -> None:
        self.name = pipeline.name
        self._pipeline = pipeline
        self.retries = 0

    async def make_places(self, _: aiohttp.ClientSession, count: int) -> Sequence[str]:
        return [""] * count

    async def post(self, http: aiohttp.ClientSession, _: str) -> str:
        async with http.post(f"{self._pipeline.url}/jobs", json={"input": INPUT}) as answer:
            answer.raise_for_status()
            job_id: str = (await answer.json())["id"]
            return job_id

    async def poll(self, http: aiohttp.ClientSession, _: str, request_id: str) -> None:
        async with http.get(f"{self._pipeline.url}/jobs/{request_id}?wait={WAIT_SECONDS}") as answer:
            answer.raise_for_status()
            job = await answer.json()
        if job["status"] != "completed":
            raise RuntimeError(f"{request_id} is still {job['status']}")

    async def until_settled(self) -> None:
        """What a client has seen is stored, and its delivery acked, before."""

    def pids(self) -> dict[str, int]:
        return self._pipeline.pids()


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}
