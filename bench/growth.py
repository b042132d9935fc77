"""What a request costs with few and with very many stored, and how every statement would then be carried out."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import aiohttp

from bench import load
from bench.bed import Bed, say, set_provider
from bench.compare import line
from bench.filling import fill
from bench.load import Load
from bench.measuring import Figures, measured, median
from bench.plans import explain
from bench.statements import StatementLog, connect
from bench.systems import Parley
from deploy.local.environment import SERVICES
from deploy.local.servers.find import DSN_NAMES

RECORD_SECONDS = 20.0
"""The slowest loops that look at tables every few seconds turn once in this time."""
SEED_REQUESTS = 16


async def compare_sizes(
    bed: Bed,
    few: Parley,
    many: Parley,
    servers: Mapping[str, int],
    *,
    rows: Mapping[str, int],
    scale: float,
    rounds: int,
) -> dict[str, Any]:
    what = Load(max(64, round(2000 * scale)), in_flight=64)
    systems = {"few": few, "many": many}
    runs: dict[str, list[Figures]] = {"few": [], "many": []}
    async with load.client() as http:
        for name, system in systems.items():
            set_provider(system, first_byte_ms=0)
            await _some(system, http, SEED_REQUESTS)
            say(f"storing {rows[name]} requests")
            await fill(_dsns(system), rows[name])
        for system in systems.values():
            await _some(system, http, max(SEED_REQUESTS, what.count // 5))
        say(f"with {rows['few']} and with {rows['many']} stored, {what.count} requests a run")
        for number in range(rounds):
            for name in ("few", "many") if number % 2 == 0 else ("many", "few"):
                figures = await measured(systems[name], http, what, servers, provider_ms=0)
                runs[name].append(figures)
                say(f"  {name:5}{line(figures)}")
        plans = await _plans(bed, many, http)
    medians = {name: median(of) for name, of in runs.items()}
    ratio = medians["many"].cpu_ms / medians["few"].cpu_ms
    offences = [plan for plan in plans if plan["read_whole"]]
    say(f"  CPU many to few: {ratio:.2f}; {len(plans)} statements, {len(offences)} would read a big table whole")
    return {
        "rows": dict(rows),
        "ratio_cpu": ratio,
        "database_bytes": {name: await _sizes(system) for name, system in systems.items()},
        "medians": {name: asdict(figures) for name, figures in medians.items()},
        "statements_that_read_whole": offences,
        "statements": plans,
    }


async def _some(system: Parley, http: aiohttp.ClientSession, count: int) -> None:
    places = await system.make_places(http, count)
    await load.run(system, http, places, Load(count, in_flight=SEED_REQUESTS))
    await system.until_settled()


async def _plans(bed: Bed, parley: Parley, http: aiohttp.ClientSession) -> list[dict[str, Any]]:
    per_second = 10.0
    async with StatementLog(bed.postgres.dsn("postgres")).recording() as statements:
        count = round(RECORD_SECONDS * per_second)
        places = await parley.make_places(http, count)
        await load.run(parley, http, places, Load(count, per_second=per_second))
        await parley.until_settled()
    dsns = _dsns(parley)
    return await explain({dsn.rpartition("/")[2]: dsn for dsn in dsns.values()}, statements)


def _dsns(parley: Parley) -> dict[str, str]:
    return {service: parley.stack.urls[DSN_NAMES[service]] for service in SERVICES}


async def _sizes(parley: Parley) -> dict[str, int]:
    found = {}
    for service, dsn in _dsns(parley).items():
        connection = await connect(dsn)
        try:
            found[service] = await connection.fetchval("SELECT pg_database_size(current_database())")
        finally:
            await connection.close()
    return found
