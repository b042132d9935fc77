"""Two orchestrators and two gateways that are killed in turn: each session's turns run in order, one at a time, each
with all before it in its prompt; and the providers' limits hold over every window. One world is used by all tests."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest

from deploy.local.servers import Servers
from tests.support.bus import eventually
from tests.support.faults.buckets import Withdrawal, drawn, somebody_waits
from tests.support.faults.evidence import Evidence, Row
from tests.support.faults.load import Tempo
from tests.support.faults.report import Report
from tests.support.faults.trial import Trial, trial
from tests.support.faults.world import World, apart, running_world
from tests.support.guard import GUARD_SECONDS

SESSIONS, TURNS = 50, 10
ORDER = Tempo(
    sessions=SESSIONS,
    conversations=1,
    turns_min=TURNS,
    turns_max=TURNS,
    cancels=0,
    short_deadlines=0,
    think_seconds_max=0.02,
)
PACED_PER_MINUTE, METERED_PER_MINUTE = 300, 15_000
MODELS = f"""
    [models.default]
    [[models.default.deployments]]
    name = "main"
    provider = "openai"
    model = "gpt-4o-mini"
    quota_domain = "openai"

    [models.paced]
    [[models.paced.deployments]]
    name = "paced"
    provider = "openai"
    model = "gpt-4o-mini"
    quota_domain = "by requests"
    requests_per_minute = {PACED_PER_MINUTE}

    [models.metered]
    max_output_tokens = 64
    [[models.metered.deployments]]
    name = "metered"
    provider = "openai"
    model = "gpt-4o-mini"
    quota_domain = "by tokens"
    tokens_per_minute = {METERED_PER_MINUTE}
"""
WITHDRAWALS = (
    Withdrawal("by requests", "requests", PACED_PER_MINUTE, left=10),
    Withdrawal("by tokens", "tokens", METERED_PER_MINUTE, left=1_000),
)
LIMITED = Tempo(
    sessions=120,
    models=("paced", "metered"),
    turns_max=2,
    cancels=0,
    short_deadlines=0,
    think_seconds_max=0.02,
)
LIMITED_REQUESTS = 200
LIMITED_USERS = (20, 21, 22, 23)
"""Two of each model are sent away by the provider."""
RETRY_AFTER_SECONDS = 1.5
MARKER = re.compile(r"\[\[(\S+)\]\]")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, world_servers: Servers) -> Iterator[World]:
    models = tmp_path_factory.mktemp("models") / "models.toml"
    models.write_text(MODELS)
    with running_world(World(tmp_path_factory.mktemp("world"), world_servers, models=models)) as world:
        yield world


async def judged(running: Trial, requests: int) -> Report:
    report = await running.finish()
    assert not report.violations, str(report)
    assert report.ended == report.accepted >= requests, str(report)
    for trace in ("workers_lost", "connections_lost"):
        assert report.bites[trace] > 0, f"no trace of {trace}\n{report}"
    return report


async def killed(running: Trial, name: str) -> None:
    """With at least twenty calls under way, and started again while they still are."""
    await running.hold()
    await apart(running.world.kill, name)
    await apart(running.world.restart, name)
    await running.release()


async def test_each_session_runs_in_order_and_one_turn_at_a_time_while_replicas_are_killed(world: World) -> None:
    async with trial(world, "order", 11, tempo=ORDER, strangers=0) as running:
        for name in ("orchestrator", "gateway", "orchestrator-2", "gateway-2"):
            await killed(running, name)
        await running.until_accepted(SESSIONS * TURNS)
        report = await judged(running, SESSIONS * TURNS)
        assert report.accepted == SESSIONS * TURNS
        evidence = await running.evidence()
    sessions = calls_by_session(evidence)
    assert len(sessions) == SESSIONS
    for calls in sessions.values():
        assert turns_called(calls) == list(range(1, TURNS + 1))
        one_at_a_time([(call["started"], call["ended"]) for call in calls])
        each_tells_all_that_was_said_before(calls)
    for rows in attempts_by_session(evidence).values():
        seqs = [seq for seq, _ in rows]
        assert seqs == sorted(seqs)
        one_at_a_time([(row["started_at"], row["ended_at"]) for _, row in rows])
    for row in await turns_dispatched_early(world.servers.dsns["gateway"], running.load.account_ids):
        pytest.fail(f"turn {row['seq']} of {row['session_id']} was dispatched before the one before it had ended")


def calls_by_session(evidence: Evidence) -> Mapping[str, list[Row]]:
    """By what the provider's log alone says; a marker is `name-user-conversation-turn`."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for call in sorted(evidence.calls, key=lambda call: call["arrived_at"]):
        found[call["marker"].rpartition("-")[0]].append(call)
    return found


def turns_called(calls: list[Row]) -> list[int]:
    """In the order of the calls; a turn that was called again after a kill counts once."""
    turns = [int(call["marker"].rpartition("-")[2]) for call in calls]
    return [turn for turn, _ in itertools.groupby(turns)]


def one_at_a_time(spans: list[tuple[Any, Any]]) -> None:
    """A killed caller is gone before anybody takes over its turn: its lease has to run out first."""
    for (_, ended), (started, _) in itertools.pairwise(spans):
        assert ended is not None
        assert ended <= started


def each_tells_all_that_was_said_before(calls: list[Row]) -> None:
    for call in calls:
        asked = [MARKER.findall(message["content"])[0] for message in call["messages"] if message["role"] == "user"]
        answered = [MARKER.findall(m["content"])[0] for m in call["messages"] if m["role"] == "assistant"]
        session, _, turn = call["marker"].rpartition("-")
        assert asked == [f"{session}-{number}" for number in range(1, int(turn) + 1)]
        assert answered == asked[:-1]


def attempts_by_session(evidence: Evidence) -> Mapping[str, list[tuple[int, Row]]]:
    place = {row["request_id"]: (row["session_id"], row["seq"]) for row in evidence.rows["tasks"]}
    found: defaultdict[str, list[tuple[int, Row]]] = defaultdict(list)
    for row in sorted(evidence.rows["attempts"], key=lambda row: row["started_at"]):
        session_id, seq = place[row["request_id"]]
        found[session_id].append((seq, row))
    return found


async def turns_dispatched_early(dsn: str, account_ids: frozenset[str]) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(
            """
            SELECT later.session_id, later.seq FROM requests later
            JOIN requests earlier ON earlier.session_id = later.session_id AND earlier.seq = later.seq - 1
            WHERE later.account_id = ANY($1) AND later.dispatched_at < earlier.ended_at
            """,
            sorted(account_ids),
        )
    finally:
        await connection.close()


async def test_every_window_keeps_the_limits_and_no_retry_after_is_undercut_while_replicas_are_killed(
    world: World,
) -> None:
    """What is checked of it, and how exactly: tests/support/faults/invariants/buckets.py."""
    dsn = world.servers.dsns["orchestrator"]
    await apart(world.kill, "orchestrator-2")
    drawing = AsyncExitStack()
    await drawing.enter_async_context(drawn(dsn, *WITHDRAWALS))
    async with drawing, trial(world, "limits", 12, tempo=LIMITED, strangers=0) as running:
        limited = {"kind": "status", "status": 429, "retry_after_seconds": RETRY_AFTER_SECONDS}
        for user in LIMITED_USERS:
            await running.llm.script(f"limits-{user}-1-1", limited)
        # These are all held by the one orchestrator that lives, so that it has something to lose.
        await running.llm.ask("PUT", "/gates/held", {"match": {"text": "[[limits-1"}})
        await running.until_accepted(LIMITED.sessions)
        await eventually(lambda: somebody_waits(dsn), seconds=GUARD_SECONDS)
        await drawing.aclose()
        await running.llm.wait("held >= 5", seconds=GUARD_SECONDS)
        await apart(world.restart, "orchestrator-2")
        await struck(running, "orchestrator")
        await running.llm.open_gate("held")
        for name in ("gateway", "orchestrator-2", "gateway-2"):
            await struck(running, name)
        await running.until_accepted(LIMITED_REQUESTS)
        await judged(running, LIMITED_REQUESTS)
        evidence = await running.evidence()
    waited = await requests_that_waited(dsn, running.load.account_ids)
    assert min(waited["paced"], waited["metered"]) >= 20, waited
    # Not all four: an answer that its caller did not live to write down closes nothing.
    assert sum(row["outcome"] == "rate_limited" for row in evidence.rows["attempts"]) >= 2


async def struck(running: Trial, name: str) -> None:
    """Killed while everything flows: were it held back the buckets would fill up meanwhile."""
    assert running.open >= 20, running.open
    await apart(running.world.kill, name)
    await apart(running.world.restart, name)


async def requests_that_waited(dsn: str, account_ids: frozenset[str]) -> Mapping[str, int]:
    """For a place in a bucket, by deployment."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            """
            SELECT a.deployment, count(DISTINCT w.request_id) FROM waits w JOIN tasks USING (request_id)
            JOIN attempts a USING (request_id)
            WHERE w.reason = 'provider_rate_limit' AND account_id = ANY($1) GROUP BY 1
            """,
            sorted(account_ids),
        )
    finally:
        await connection.close()
    return defaultdict(int, {row["deployment"]: row["count"] for row in rows})
