"""The benchmark at its smallest, so that it does not rot: that it runs and counts right, not how fast anything is."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import report
from bench.bed import Bed
from bench.compare import Scenario, compare
from bench.load import Load
from bench.plans import explain
from bench.raw.pipeline import RawPipeline
from bench.statements import Statement, commits, connect, parse
from bench.steps.pipeline import StepsPipeline
from bench.systems import Parley, Raw
from deploy.local.environment import LLM
from deploy.local.servers import Postgres, RabbitMQ
from tests.support.servers import Databases, Vhosts, run_apart
from tests.support.stack import Stack, subscribed_account

REQUESTS = 6
PIPELINES = (RawPipeline, StepsPipeline)


@pytest.fixture
def pipelines(
    stack: Stack, rabbitmq_server: RabbitMQ, databases: Databases, vhosts: Vhosts, tmp_path: Path
) -> Iterator[tuple[Raw, Raw]]:
    """The raw one, and the steps alone."""
    taken = [vhosts.take() for _ in PIPELINES]
    running = [
        pipeline(
            tmp_path / pipeline.name,
            dsn=run_apart(databases.empty()),
            amqp_url=rabbitmq_server.url(vhost),
            llm_url=stack.url(LLM),
        )
        for pipeline, vhost in zip(PIPELINES, taken, strict=True)
    ]
    for one in running:
        one.start(dict(stack.processes["gateway"].environ))
    raw, steps = map(Raw, running)
    yield raw, steps
    for one, vhost in zip(running, taken, strict=True):
        one.stop()
        vhosts.give_back(vhost)


async def test_the_systems_are_loaded_and_measured(
    stack: Stack, pipelines: tuple[Raw, Raw], postgres_server: Postgres, rabbitmq_server: RabbitMQ, tmp_path: Path
) -> None:
    account = await asyncio.to_thread(subscribed_account, stack, "bench")
    servers = await asyncio.to_thread(Bed(tmp_path, postgres_server, rabbitmq_server).server_pids)
    wanted = [
        Scenario("closed", Load(REQUESTS, in_flight=3), 0),
        Scenario("alone", Load(REQUESTS, in_flight=1), 0, beside_steps=True),
        Scenario("open", Load(REQUESTS, per_second=50), 0),
    ]
    found = await compare(Parley(stack, [account]), *pipelines, servers, wanted, rounds=1)
    for scenario in found["scenarios"].values():
        assert scenario["medians"]["parley"]["requests"] == REQUESTS
        assert scenario["medians"]["parley"]["added_p50_ms"] > scenario["medians"]["parley"]["accept_p50_ms"]
        assert scenario["ratios"]["throughput"] > 0
        assert {"gateway", "orchestrator", "billing", "results", "postgres", "rabbitmq", "load_generator"} == set(
            scenario["medians"]["parley"]["cpu_ms_by_process"]
        )
    alone = found["scenarios"]["alone"]
    assert set(alone["medians"]) == {"raw", "steps", "parley"}
    assert alone["ratios"]["added_p50_of_the_steps"] > 0
    stored = report.store(tmp_path, {"compare": found})
    assert json.loads((tmp_path / report.LATEST).read_text()) == stored


def test_parts_that_were_not_measured_again_keep_their_figures(tmp_path: Path) -> None:
    report.store(tmp_path, {"growth": {"ratio_cpu": 1.0}, "budget": {"commits": 9}})
    stored = report.store(tmp_path, {"budget": {"commits": 7}})
    assert stored["growth"]["ratio_cpu"] == 1.0
    assert stored["budget"]["commits"] == 7


def test_statements_are_read_from_the_servers_log() -> None:
    lines = [
        _line("duration: 0.014 ms  parse __asyncpg_stmt_1__: UPDATE t SET a = $1", txid=0),
        _line("duration: 0.121 ms  execute __asyncpg_stmt_1__: UPDATE t\n SET a = $1 -- why", txid=7),
        _line("duration: 0.011 ms  statement: BEGIN;", txid=0),
        _line("duration: 0.042 ms  execute __asyncpg_stmt_2__: SELECT a FROM t FOR UPDATE", txid=8),
        _line("duration: 0.050 ms  execute __asyncpg_stmt_1__: UPDATE t\n SET a = $1 -- why", txid=8),
        _line("duration: 0.510 ms  statement: COMMIT;", txid=0),
        _line("duration: 0.042 ms  execute __asyncpg_stmt_3__: SELECT 1", txid=0),
        _line("duration: 0.042 ms  execute __asyncpg_stmt_3__: SELECT 1", txid=9, application_name="bench"),
        _line("checkpoint starting: time", txid=0),
    ]
    found = parse(lines)
    assert [one.verb for one in found] == ["UPDATE", "BEGIN", "SELECT", "UPDATE", "COMMIT", "SELECT"]
    assert found[0].text == "UPDATE t\n SET a = $1 -- why"
    assert commits(found) == 2


async def test_a_statement_that_would_read_a_big_table_whole_is_found(databases: Databases) -> None:
    dsn = await databases.empty()
    connection = await connect(dsn)
    try:
        await connection.execute("CREATE TABLE t AS SELECT n AS id, n AS other FROM generate_series(1, 20000) AS n")
        await connection.execute("ALTER TABLE t ADD PRIMARY KEY (id)")
        await connection.execute("VACUUM (ANALYZE) t")
    finally:
        await connection.close()
    statements = [
        Statement("d", 0, "SELECT id FROM t WHERE id = ANY($1)"),
        Statement("d", 5, "UPDATE t SET id = -id WHERE other = $1"),
    ]
    read_whole = {one["text"]: one["read_whole"] for one in await explain({"d": dsn}, statements)}
    assert read_whole == {statements[0].text: [], statements[1].text: ["t"]}


def _line(message: str, *, txid: int, application_name: str = "parley-gateway") -> str:
    entry = {"message": message, "txid": txid, "dbname": "d", "backend_type": "client backend"}
    return json.dumps(entry | {"application_name": application_name})
