"""What one request costs, counted: commits, statements, publishes, deliveries and calls, beside the design's budget."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp

from bench import load
from bench.bed import Bed, say, set_provider
from bench.load import Load, System
from bench.messages import broker_counts, difference, service_counts
from bench.statements import Statement, StatementLog, commits
from bench.systems import Parley, Raw
from deploy.local.environment import SERVICES

BUDGET: Mapping[str, int] = {"commits": 7, "publishes": 3, "deliveries": 4, "internal_calls": 1}
IDLE_SECONDS = 5.0


async def count_both(bed: Bed, parley: Parley, raw: Raw, *, scale: float) -> dict[str, Any]:
    """One at a time nothing can share a commit: that is the budget's own figure. Under load groups form."""
    set_provider(parley, first_byte_ms=0)
    counted: dict[str, Any] = {"budget": dict(BUDGET)}
    loads = {
        "1 in flight": Load(max(20, round(100 * scale)), 1),
        "64 in flight": Load(max(128, round(1500 * scale)), 64),
    }
    async with load.client() as http:
        idle = await _idle(bed, parley)
        for name, what in loads.items():
            say(f"counting, {name}")
            of_raw = await _count(bed, raw, http, what, {})
            of_parley = await _count(bed, parley, http, what, idle)
            counted[name] = {"raw": of_raw, "parley": of_parley}
            say(f"  raw    {_line(of_raw)}")
            say(f"  Parley {_line(of_parley)}")
    return counted


async def _idle(bed: Bed, parley: Parley) -> dict[str, dict[str, float]]:
    """What the loops of each service do per second while nothing is asked."""
    async with StatementLog(bed.postgres.dsn("postgres")).recording() as statements:
        await asyncio.sleep(IDLE_SECONDS)
    return {
        database: {name: value / (IDLE_SECONDS + 0.5) for name, value in counts.items()}
        for database, counts in _by_database(statements, 1).items()
    }


async def _count(
    bed: Bed, system: System, http: aiohttp.ClientSession, what: Load, idle: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    places = await system.make_places(http, what.count)
    await system.until_settled()
    ops_urls = {name: system.stack.ops_url(name) for name in SERVICES} if isinstance(system, Parley) else {}
    broker, services = await asyncio.to_thread(_both, bed, ops_urls)
    async with StatementLog(bed.postgres.dsn("postgres")).recording() as statements:
        outcome = await load.run(system, http, places, what)
        await system.until_settled()
    broker_after, services_after = await asyncio.to_thread(_both, bed, ops_urls)
    databases = _by_database(statements, what.count)
    for database, counts in databases.items():
        for name, per_second in idle.get(database, {}).items():
            counts[name] -= per_second * (outcome.seconds + 0.5) / what.count
    of_services = {name: value / what.count for name, value in difference(services_after, services).items()}
    return {
        "requests": what.count,
        "totals": _totals(databases, difference(broker_after, broker), of_services, what.count),
        "by_database": databases,
        "by_service": of_services,
        "statements": _most_frequent(statements, what.count),
    }


def _both(bed: Bed, ops_urls: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
    return broker_counts(bed.rabbitmq), service_counts(ops_urls)


def _by_database(statements: Iterable[Statement], requests: int) -> dict[str, dict[str, float]]:
    of: dict[str, list[Statement]] = {}
    for statement in statements:
        of.setdefault(statement.database, []).append(statement)
    return {
        database: {
            "commits": commits(group) / requests,
            "statements": sum(not statement.is_bracket for statement in group) / requests,
            "round_trips": len(group) / requests,
        }
        for database, group in sorted(of.items())
    }


def _totals(
    databases: Mapping[str, Mapping[str, float]], broker: Mapping[str, float], services: Mapping[str, float], count: int
) -> dict[str, float]:
    return {
        "commits": sum(counts["commits"] for counts in databases.values()),
        "statements": sum(counts["statements"] for counts in databases.values()),
        "publishes": broker.get("publishes confirmed", 0) / count,
        "publishes_of_hints": broker.get("publishes of hints", 0) / count,
        "deliveries": broker.get("deliveries acked", 0) / count,
        "deliveries_of_hints": broker.get("deliveries of hints", 0) / count,
        "internal_calls": sum(value for name, value in services.items() if "/internal/" in name),
    }


def _most_frequent(statements: Iterable[Statement], requests: int) -> list[dict[str, Any]]:
    counted = Counter((statement.database, statement.title) for statement in statements)
    return [
        {"database": database, "per_request": round(count / requests, 3), "text": text}
        for (database, text), count in counted.most_common()
        if count >= requests / 100
    ]


def _line(counted: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in counted["totals"].items())
