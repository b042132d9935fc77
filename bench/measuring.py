"""One measured run of one load on one system, and the medians of several."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import aiohttp

from bench import load, usage
from bench.load import Load, System


@dataclass(frozen=True)
class Figures:
    """Times in milliseconds. `added` is what came on top of the provider's own time. `cpu_ms` is per request."""

    requests: int
    seconds: float
    settle_seconds: float
    throughput_per_second: float
    accept_p50_ms: float
    accept_p99_ms: float
    added_p50_ms: float
    added_p99_ms: float
    retries: int
    cpu_ms: float
    cpu_ms_by_process: Mapping[str, float]


async def measured(
    system: System, http: aiohttp.ClientSession, what: Load, servers: Mapping[str, int], *, provider_ms: float
) -> Figures:
    """CPU is counted until the system has settled: work that is put off is still work."""
    places = await system.make_places(http, what.count)
    await system.until_settled()
    pids = {**system.pids(), **servers}
    retries = system.retries
    before, generator_before = usage.all_cpu_seconds(pids), time.process_time()
    outcome = await load.run(system, http, places, what)
    generator_after, settling = time.process_time(), time.monotonic()
    await system.until_settled()
    settle_seconds = time.monotonic() - settling
    after = usage.all_cpu_seconds(pids)
    by_process = {name: 1000 * (after[name] - before[name]) / what.count for name in pids}
    generator = 1000 * (generator_after - generator_before) / what.count
    accepts = sorted(1000 * sample.accept_seconds for sample in outcome.samples)
    added = sorted(1000 * sample.total_seconds - provider_ms for sample in outcome.samples)
    return Figures(
        requests=what.count,
        seconds=outcome.seconds,
        settle_seconds=settle_seconds,
        throughput_per_second=what.count / outcome.seconds,
        accept_p50_ms=percentile(accepts, 50),
        accept_p99_ms=percentile(accepts, 99),
        added_p50_ms=percentile(added, 50),
        added_p99_ms=percentile(added, 99),
        retries=system.retries - retries,
        cpu_ms=sum(by_process.values()),
        cpu_ms_by_process={**by_process, "load_generator": generator},
    )


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The nearest rank, of values in ascending order."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * percent / 100))]


def median(runs: Sequence[Figures]) -> Figures:
    """Field by field."""
    fields = [asdict(run) for run in runs]
    names = [name for name in fields[0] if name not in ("cpu_ms_by_process", "requests")]
    processes = runs[0].cpu_ms_by_process
    return Figures(
        requests=runs[0].requests,
        cpu_ms_by_process={name: statistics.median(run.cpu_ms_by_process[name] for run in runs) for name in processes},
        **{name: statistics.median(run[name] for run in fields) for name in names},
    )
