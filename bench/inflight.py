"""Thousands at a time: calls in flight in one orchestrator, polls that wait in one gateway, and their waking."""

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from bench import load, usage
from bench.bed import Bed, say
from bench.measuring import percentile
from bench.statements import StatementLog, commits, connect
from bench.systems import Parley
from deploy.local.environment import LLM
from deploy.local.servers.find import DSN_NAMES

GATE = "bench"
WINDOW_SECONDS = 20.0
PER_SECONDS = 5.0
ALL_WAITING_SECONDS = 120
WAITING = re.compile(r'^parley_waiters\{hub="snapshots"\} (\S+)$', re.MULTILINE)
WATCH_SECONDS = 0.002
POSTS_AT_A_TIME = 64
WOKEN = 100
ALL_ENDED_SECONDS = 240
CALL_SECONDS = 600

Requests = list[tuple[str, str]]
"""Place and id."""


def overrides(calls: int) -> Mapping[str, Mapping[str, str]]:
    """As many slots as calls, and time enough for the provider to be silent."""
    return {
        "orchestrator": {
            "SLOTS": str(calls),
            "FIRST_TOKEN_SECONDS": str(CALL_SECONDS),
            "ATTEMPT_SECONDS": str(CALL_SECONDS),
        }
    }


class InFlight:
    """Requests whose provider call stands at a gate, for as long as wanted."""

    def __init__(self, bed: Bed, parley: Parley, http: aiohttp.ClientSession) -> None:
        self._bed = bed
        self._parley = parley
        self._http = http
        self._control = parley.stack.ops_url(LLM)

    async def measure(self, *, calls: int, seconds: float) -> dict[str, Any]:
        await self._ask("PUT", f"/gates/{GATE}", {"match": {}})
        requests = await self._begin(calls)
        say(f"{calls} calls in flight, for {seconds:g} s")
        held = asyncio.create_task(asyncio.sleep(seconds))
        polls = await self._measure_polls(requests)
        await held
        counters = await self._ask("GET", "/counters")
        before_burst = usage.peak_bytes(self._parley.pids()["orchestrator"])
        await self._end_all(requests)
        found = {
            "calls": calls,
            "seconds": seconds,
            "provider_peak_in_flight": counters["peak_in_flight"],
            "still_in_flight_at_the_end": counters["in_flight"],
            "peak_bytes_while_in_flight": before_burst,
            "peak_bytes": {name: usage.peak_bytes(pid) for name, pid in self._parley.pids().items()},
            **await self._fences(),
        }
        orchestrator = found["peak_bytes"]["orchestrator"]
        say(
            f"  provider's peak {found['provider_peak_in_flight']}, orchestrator's peak {orchestrator >> 20} MiB, "
            f"max(fence) {found['max_fence']}, tasks {found['tasks']}"
        )
        return {"calls": found, "polls": polls}

    async def _begin(self, calls: int) -> Requests:
        places = await self._parley.make_places(self._http, calls)
        limit = asyncio.Semaphore(POSTS_AT_A_TIME)

        async def post(place: str) -> tuple[str, str]:
            async with limit:
                return place, await self._parley.post(self._http, place)

        requests = await asyncio.gather(*map(post, places))
        while (held := (await self._ask("GET", "/counters"))["held"]) < calls:
            say(f"  {held} of {calls} calls have reached the provider")
            with contextlib.suppress(TimeoutError):
                await self._await_held(calls)
        return requests

    async def _await_held(self, calls: int) -> None:
        answer = {"until": f"held >= {calls}", "timeout_seconds": 10}
        async with self._http.post(f"{self._control}/await", json=answer):
            return

    async def _count_transactions(self, waiters: int) -> dict[str, float]:
        """Of the gateway's database. Waiters read again every so often, so a window is longer than that."""
        async with StatementLog(self._bed.postgres.dsn("postgres")).recording() as statements:
            await asyncio.sleep(WINDOW_SECONDS)
        database = self._parley.stack.urls[DSN_NAMES["gateway"]].rpartition("/")[2]
        of_gateway = [one for one in statements if one.database == database]
        share = PER_SECONDS / (WINDOW_SECONDS + 0.5)
        found = {"waiters": waiters, "statements": share * len(of_gateway), "writing": share * commits(of_gateway)}
        say(f"  {waiters} polls wait: {found['statements']:.0f} statements of the gateway in {PER_SECONDS:g} s")
        return found

    async def _poll_once(self, place: str, request_id: str) -> float:
        await self._parley.poll(self._http, place, request_id)
        return time.monotonic()

    async def _measure_polls(self, requests: Requests) -> dict[str, Any]:
        nobody = await self._count_transactions(0)
        retries = self._parley.retries
        polls = {request[1]: asyncio.create_task(self._poll_once(*request)) for request in requests}
        settled_seconds = await self._until_waiting(len(polls))
        retries = self._parley.retries - retries
        say(f"  {len(polls)} polls wait after {settled_seconds:.0f} s and {retries} answers of 503")
        everybody = await self._count_transactions(len(polls))
        woken = await self._wake(polls, min(WOKEN, len(polls) // 2))
        for poll in polls.values():
            poll.cancel()
        await asyncio.gather(*polls.values(), return_exceptions=True)
        return {"per_seconds": PER_SECONDS, "transactions": [nobody, everybody], "wake_up": woken} | {
            "all_waiting_after_seconds": settled_seconds,
            "retries_until_all_waited": retries,
        }

    async def _until_waiting(self, count: int) -> float:
        """How long it took until the gateway held all polls."""
        began = time.monotonic()
        url = f"{self._parley.stack.ops_url('gateway')}/metrics"
        async with asyncio.timeout(ALL_WAITING_SECONDS):
            while True:
                async with self._http.get(url) as answer:
                    waiting = WAITING.search(await answer.text())
                if waiting is not None and float(waiting[1]) >= count:
                    return time.monotonic() - began
                await asyncio.sleep(0.5)

    async def _wake(self, polls: Mapping[str, "asyncio.Task[float]"], count: int) -> dict[str, float]:
        """All wait, some end at once: how long from the committed end to the client's answer, for each of those."""
        watching = asyncio.create_task(self._watch_ends(list(polls), count))
        released = time.monotonic()
        await self._ask("POST", f"/gates/{GATE}/release", {"count": count})
        committed = await watching
        answered = {request_id: await polls[request_id] for request_id in committed}
        after_commit = sorted(1000 * (answered[one] - at) for one, at in committed.items())
        after_release = sorted(1000 * (at - released) for at in answered.values())
        found = {
            "waiting": len(polls),
            "ended_at_once": len(committed),
            "wake_p50_ms": percentile(after_commit, 50),
            "wake_p99_ms": percentile(after_commit, 99),
            "since_release_p50_ms": percentile(after_release, 50),
            "since_release_p99_ms": percentile(after_release, 99),
        }
        say(f"  {count} end at once: woken after {found['wake_p50_ms']:.0f} / {found['wake_p99_ms']:.0f} ms")
        return found

    async def _watch_ends(self, request_ids: Sequence[str], count: int) -> dict[str, float]:
        """When the end of each was seen in the gateway's table; at most a few milliseconds late."""
        seen: dict[str, float] = {}
        connection = await connect(self._parley.stack.urls[DSN_NAMES["gateway"]])
        try:
            while len(seen) < count:
                rows = await connection.fetch(
                    "SELECT id FROM requests WHERE id = ANY($1) AND ended_at IS NOT NULL", request_ids
                )
                at = time.monotonic()
                for row in rows:
                    seen.setdefault(row["id"], at)
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            await connection.close()
        return seen

    async def _end_all(self, requests: Requests) -> None:
        await self._ask("DELETE", f"/gates/{GATE}")
        async with asyncio.timeout(ALL_ENDED_SECONDS):
            await asyncio.gather(*(self._poll_once(*request) for request in requests))
        await self._parley.until_settled()

    async def _fences(self) -> dict[str, int]:
        connection = await connect(self._parley.stack.urls[DSN_NAMES["orchestrator"]])
        try:
            row = await connection.fetchrow(
                "SELECT count(*) AS tasks, max(fence) AS max_fence, max(workers_lost) AS workers_lost,"
                " max(attempts) AS max_attempts FROM tasks"
            )
        finally:
            await connection.close()
        return dict(row or {})

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        async with self._http.request(method, self._control + path, json=body) as answer:
            answer.raise_for_status()
            return await answer.json()


async def measure(bed: Bed, parley: Parley, *, calls: int, seconds: float) -> dict[str, Any]:
    async with load.client() as http:
        return await InFlight(bed, parley, http).measure(calls=calls, seconds=seconds)
