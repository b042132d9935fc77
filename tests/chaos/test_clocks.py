"""Hosts whose wall clocks are wrong, replicas' in opposite directions: nothing is stolen, undercut or expired early,
for whatever replicas compare is told by the database. One world is used by all tests of this file."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import ProxyHandler, build_opener

import asyncpg
import pytest

from deploy.local.servers import Servers
from deploy.local.standins.stripe import signing
from tests.support.bus import eventually
from tests.support.faults.invariants.provider import calls_by_request
from tests.support.faults.load import Tempo
from tests.support.faults.report import Report
from tests.support.faults.trial import Trial, trial
from tests.support.faults.world import World, apart, running_world
from tests.support.guard import GUARD_SECONDS
from tests.support.parley import http_session

LEASE_SECONDS = 15
SKEWS: Mapping[str, float] = {
    "orchestrator": 20,
    "orchestrator-2": -20,
    "gateway": -20,
    "gateway-2": 20,
    # Beyond the five minutes that a signature of Stripe is good for, and every hold of these tests.
    "billing": 400,
    "results": -400,
}
READING_SECONDS = 10
"""How far apart an answer's Date and our reading of it may be; less than any two of the clocks."""
QUIET = Tempo(sessions=40, turns_max=3, cancels=0, short_deadlines=0)
DEADLINE_SECONDS = 15
"""Less than the clocks are wrong by, so a host that trusted its own would find it passed at once, or far away."""
SHORT = Tempo(sessions=40, turns_max=2, cancels=0, short_deadlines=0, deadline_seconds=DEADLINE_SECONDS)
FAULTS = [
    {"probability": 0.1, "behaviour": {"kind": "status", "status": 429, "retry_after_seconds": 2}},
    {"probability": 0.1, "behaviour": {"kind": "status", "status": 500}},
]
LONGEST_PAUSE = timedelta(seconds=5)
"""A task whose next attempt would come after its deadline ends at once: so much earlier at most, in these tests."""
REQUESTS = 100
READ_SECONDS = 1.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, world_servers: Servers) -> Iterator[World]:
    settings = {"orchestrator": {"LEASE_SECONDS": str(LEASE_SECONDS)}}
    with running_world(World(tmp_path_factory.mktemp("world"), world_servers, settings=settings, skews=SKEWS)) as world:
        yield world


async def judged(running: Trial, requests: int) -> Report:
    report = await running.finish()
    assert not report.violations, str(report)
    assert report.ended == report.accepted >= requests, str(report)
    return report


async def read(dsn: str, query: str, *arguments: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(query, *arguments)
    finally:
        await connection.close()


def test_the_clocks_of_these_processes_are_wrong(world: World) -> None:
    """Else nothing here would show anything."""
    opener = build_opener(ProxyHandler({}))
    for name in world.names():
        with opener.open(f"{world.stack.ops_url(name)}/healthz") as answer:
            said = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        assert abs(said - time.time() - SKEWS[name]) < READING_SECONDS, name


async def test_no_lease_is_found_expired_and_nothing_is_stolen(world: World) -> None:
    """By a clock that is ahead each lease has ended before it is written, by one that is behind none ever ends."""
    dsn = world.servers.dsns["orchestrator"]
    async with trial(world, "quiet", 21, tempo=QUIET, strangers=0) as running:
        await running.hold()
        before = await leases(dsn)
        assert len(before) == len(world.names("orchestrator"))
        await eventually(lambda: renewed(dsn, before), seconds=GUARD_SECONDS)
        await running.release()
        await running.until_accepted(REQUESTS)
        report = await judged(running, REQUESTS)
        evidence = await running.evidence()
    assert report.bites["workers_lost"] == report.bites["leases_lost"] == report.bites["zombie_writes"] == 0, str(
        report
    )
    assert {row["fence"] for row in evidence.rows["tasks"]} == {1}
    assert set(await leases(dsn)) == set(before)


async def leases(dsn: str) -> Mapping[str, Any]:
    """Of the workers that live."""
    query = "SELECT id, expires_at FROM workers WHERE expires_at > now()"
    return {row["id"]: row["expires_at"] for row in await read(dsn, query)}


async def renewed(dsn: str, before: Mapping[str, Any]) -> bool:
    """Whether each lease has been, while calls were under way."""
    now = await leases(dsn)
    assert now.keys() == before.keys(), "a lease has ended while its worker lived"
    return all(now[worker_id] > ends for worker_id, ends in before.items())


async def test_replicas_that_are_slow_to_learn_the_databases_time_use_no_other(world: World) -> None:
    """Commands wait for them: by a host's own clock they would begin twenty seconds after the provider is called."""
    orchestrators = world.names("orchestrator")
    for name in orchestrators:
        await apart(world.kill, name)
    async with slow_clock(world.servers.dsns["orchestrator"]), trial(world, "slow", 22, tempo=QUIET) as running:
        await running.until_accepted(QUIET.sessions)
        await asyncio.gather(*(apart(world.restart, name) for name in orchestrators))
        report = await running.finish()
        evidence = await running.evidence()
    # Not `judged`: a reading that takes so long is good for half of that only, and the invariants ask for more.
    assert report.ended == report.accepted >= QUIET.sessions, str(report)
    began = {row["request_id"]: row["started_at"].timestamp() for row in evidence.rows["attempts"]}
    assert began
    for request_id, calls in calls_by_request(evidence).items():
        assert calls[-1]["started"] > began[request_id] - READ_SECONDS


@asynccontextmanager
async def slow_clock(dsn: str) -> AsyncIterator[None]:
    """Whoever connects meanwhile and asks the database for its time waits for the answer."""
    connection = await asyncpg.connect(dsn)
    try:
        name = await connection.fetchval("SELECT quote_ident(current_database())")
        await connection.execute(
            f"""
            CREATE SCHEMA slow;
            CREATE FUNCTION slow.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$
            DECLARE read_at timestamptz;
            BEGIN
                PERFORM pg_sleep({READ_SECONDS / 2});
                read_at := pg_catalog.clock_timestamp();
                PERFORM pg_sleep({READ_SECONDS / 2});
                RETURN read_at;
            END $$;
            ALTER DATABASE {name} SET search_path = slow, pg_catalog, public;
            """
        )
        yield
        await connection.execute(f"ALTER DATABASE {name} RESET search_path; DROP SCHEMA slow CASCADE")
    finally:
        await connection.close()


async def test_nothing_is_due_before_its_time(world: World) -> None:
    """Deadlines, pauses, Retry-Afters and holds."""
    dsn = world.servers.dsns["orchestrator"]
    await note_claims(dsn)
    async with trial(world, "due", 23, tempo=SHORT, strangers=0) as running:
        await running.put_mix({"seed": 23, "faults": FAULTS})
        await running.until_accepted(REQUESTS)
        await judged(running, REQUESTS)
        evidence = await running.evidence()
    results = {row["request_id"]: row for row in evidence.rows["results"]}
    for row in evidence.rows["requests"]:
        error = results[row["id"]]["message"]["error"]
        if error is not None and error["code"] == "deadline_exceeded":
            assert results[row["id"]]["stored_at"] >= row["deadline_at"] - LONGEST_PAUSE, error
    claims = await read(dsn, "SELECT early_by FROM claims")
    assert claims
    assert max(row["early_by"] for row in claims) <= timedelta(0)
    assert world.metrics.total("parley_billing_holds_expired_total") == 0


async def note_claims(dsn: str) -> None:
    """By how much each task that stood still was taken up before it was due, by the database's own clock."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            """
            CREATE TABLE claims (early_by interval NOT NULL);
            CREATE FUNCTION note_claim() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO claims VALUES (OLD.due_at - pg_catalog.clock_timestamp());
                RETURN NULL;
            END $$;
            CREATE TRIGGER note_claim AFTER UPDATE ON tasks FOR EACH ROW
                WHEN (OLD.state = 'backing_off' AND NEW.state = 'running') EXECUTE FUNCTION note_claim();
            """
        )
    finally:
        await connection.close()


async def test_a_signature_of_stripe_is_judged_by_the_databases_clock(world: World) -> None:
    """One of now is good although this host finds it six minutes old; one of the host's own now is not."""
    await apart(world.account, "signed")  # billing hears of it by webhooks that the stand-in signs
    counted = {outcome: webhooks(world, outcome) for outcome in ("duplicate", "timestamp_out_of_bounds")}
    body = json.dumps({"id": "evt_clock", "object": "event"}).encode()
    answers = {}
    async with http_session() as http:
        for skew in (0, SKEWS["billing"], -SKEWS["billing"]):
            signed = signing.header(body, [world.stack.secrets.stripe_webhook_secret], int(time.time() + skew))
            url, headers = f"{world.stack.url('billing')}/webhooks/stripe", {"stripe-signature": signed}
            async with http.post(url, data=body, headers=headers) as response:
                answers[skew] = (response.status, (await response.json()).get("code"))
    assert answers == {
        0: (400, "event_malformed"),
        400: (400, "timestamp_out_of_bounds"),
        -400: (400, "timestamp_out_of_bounds"),
    }
    assert webhooks(world, "stored") > 0
    assert counted["timestamp_out_of_bounds"] == 0


def webhooks(world: World, outcome: str) -> float:
    return world.scrape().total("parley_billing_webhooks_total", outcome=outcome)
