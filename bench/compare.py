"""Parley beside the raw pipeline, in turns within one run: raw, Parley, Parley, raw, raw, Parley. With one request in
flight the steps alone stand between them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from bench import load, usage
from bench.bed import say, set_provider
from bench.load import Load, System
from bench.measuring import Figures, measured, median
from bench.systems import Parley, Raw

WARM_UP_SHARE = 5
"""Before each scenario a fifth of its requests warms both up."""


@dataclass(frozen=True)
class Scenario:
    name: str
    load: Load
    provider_ms: float
    beside_steps: bool = False


def scenarios(scale: float) -> list[Scenario]:
    """The sizes of `scale` 1 give each run about ten seconds on two cores."""

    def count(requests: int, least: int) -> int:
        return max(least, round(requests * scale))

    return [
        Scenario("64 in flight, provider 0 ms", Load(count(2500, 64), in_flight=64), 0),
        Scenario("500 in flight, provider 200 ms", Load(count(4000, 500), in_flight=500), 200),
        Scenario("1 in flight, provider 0 ms", Load(count(300, 10), in_flight=1), 0, beside_steps=True),
        Scenario("50 requests/s, provider 0 ms", Load(count(500, 50), per_second=50), 0),
    ]


async def compare(
    parley: Parley, raw: Raw, steps: Raw, servers: Mapping[str, int], wanted: list[Scenario], *, rounds: int
) -> dict[str, Any]:
    async with load.client() as http:
        compared = {}
        for scenario in wanted:
            say(f"{scenario.name}: {scenario.load.count} requests a run")
            set_provider(parley, first_byte_ms=scenario.provider_ms)
            systems = (raw, steps, parley) if scenario.beside_steps else (raw, parley)
            compared[scenario.name] = await _compare_in_turns(systems, http, servers, scenario, rounds)
    memory = {name: usage.peak_bytes(pid) for name, pid in (raw.pids() | parley.pids()).items()}
    return {"scenarios": compared, "peak_bytes": memory}


async def _compare_in_turns(
    systems: Sequence[System],
    http: aiohttp.ClientSession,
    servers: Mapping[str, int],
    scenario: Scenario,
    rounds: int,
) -> dict[str, Any]:
    runs: dict[str, list[Figures]] = {system.name: [] for system in systems}
    for system in systems:
        await _warm_up(system, http, scenario.load)
    for number in range(rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            figures = await measured(system, http, scenario.load, servers, provider_ms=scenario.provider_ms)
            runs[system.name].append(figures)
            say(f"  {system.name:7}{line(figures)}")
    medians = {name: median(figures) for name, figures in runs.items()}
    ratios = _ratios(medians["parley"], medians["raw"])
    if "steps" in medians:
        ratios["added_p50_of_the_steps"] = medians["steps"].added_p50_ms / medians["raw"].added_p50_ms
    say("  Parley to raw: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    return {
        "load": asdict(scenario.load),
        "provider_ms": scenario.provider_ms,
        "ratios": ratios,
        "medians": {name: asdict(figures) for name, figures in medians.items()},
        "runs": {name: [asdict(figures) for figures in of] for name, of in runs.items()},
    }


async def _warm_up(system: System, http: aiohttp.ClientSession, what: Load) -> None:
    count = max(1, what.count // WARM_UP_SHARE)
    places = await system.make_places(http, count)
    await load.run(system, http, places, Load(count, what.in_flight, what.per_second))
    await system.until_settled()


def _ratios(parley: Figures, raw: Figures) -> dict[str, float]:
    return {
        "throughput": parley.throughput_per_second / raw.throughput_per_second,
        "cpu": parley.cpu_ms / raw.cpu_ms,
        "added_p50": parley.added_p50_ms / raw.added_p50_ms,
        "added_p99": parley.added_p99_ms / raw.added_p99_ms,
        "accept_p50": parley.accept_p50_ms / raw.accept_p50_ms,
    }


def line(figures: Figures) -> str:
    return (
        f"{figures.throughput_per_second:7.0f}/s  CPU {figures.cpu_ms:6.2f} ms"
        f"  accept {figures.accept_p50_ms:6.1f} / {figures.accept_p99_ms:6.1f} ms"
        f"  added {figures.added_p50_ms:7.1f} / {figures.added_p99_ms:7.1f} ms"
        f"  settled after {figures.settle_seconds:.1f} s" + (f"  {figures.retries} retries" if figures.retries else "")
    )
