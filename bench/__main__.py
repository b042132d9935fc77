"""`python -m bench [PART ...]`: measures, prints as it goes, and writes docs/benchmarks."""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.bed import Bed, private_bed, say
from bench.budget import count_both
from bench.chart import draw
from bench.compare import compare, scenarios
from bench.group_commit import compare_on_and_off
from bench.growth import compare_sizes
from bench.inflight import measure, overrides
from deploy.local.environment import LLM
from shared import logs

ROOT = Path(__file__).parents[1] / ".local" / "bench"


@dataclass(frozen=True)
class Sizes:
    """`scale` stretches the number of requests of each run."""

    scale: float
    rounds: int
    calls: int
    seconds: float
    rows: int


def against_raw(bed: Bed, sizes: Sizes) -> dict[str, Any]:
    servers = bed.server_pids()
    with bed.parley("parley") as parley, bed.raw(url := parley.stack.url(LLM)) as raw, bed.steps(url) as steps:
        compared = asyncio.run(compare(parley, raw, steps, servers, scenarios(sizes.scale), rounds=sizes.rounds))
        counted = asyncio.run(count_both(bed, parley, raw, scale=sizes.scale))
    return {"compare": compared, "budget": counted}


def group_commit(bed: Bed, sizes: Sizes) -> dict[str, Any]:
    servers = bed.server_pids()
    with bed.parley("grouped") as on, bed.parley("ungrouped", module="bench.ungrouped") as off:
        return {
            "group_commit": asyncio.run(compare_on_and_off(on, off, servers, scale=sizes.scale, rounds=sizes.rounds))
        }


def in_flight(bed: Bed, sizes: Sizes) -> dict[str, Any]:
    with bed.parley("inflight", overrides=overrides(sizes.calls)) as parley:
        return {"in_flight": asyncio.run(measure(bed, parley, calls=sizes.calls, seconds=sizes.seconds))}


def growth(bed: Bed, sizes: Sizes) -> dict[str, Any]:
    rows = {"few": max(10, sizes.rows // 1000), "many": sizes.rows}
    servers = bed.server_pids()
    with bed.parley("few") as few, bed.parley("many") as many:
        found = asyncio.run(compare_sizes(bed, few, many, servers, rows=rows, scale=sizes.scale, rounds=sizes.rounds))
    return {"growth": found}


PARTS: dict[str, Callable[[Bed, Sizes], dict[str, Any]]] = {
    "raw": against_raw,
    "group_commit": group_commit,
    "in_flight": in_flight,
    "growth": growth,
}


def main() -> int:
    arguments = _parsed()
    logs.configure("bench", "WARNING")
    # A SIGTERM ends it as Ctrl-C does, so that nothing that it started stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sizes = Sizes(arguments.scale, arguments.rounds, arguments.calls, arguments.seconds, arguments.rows)
    began = time.monotonic()
    with private_bed(ROOT) as bed:
        for part in arguments.parts or PARTS:
            stored = report.store(arguments.out, PARTS[part](bed, sizes))
    draw(stored, arguments.out / "latest.png")
    say(f"{arguments.out} has the figures and the chart, after {time.monotonic() - began:.0f} s")
    return 0


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--scale", type=float, default=1.0, help="stretches the number of requests of each run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system, of which the median counts")
    parser.add_argument("--calls", type=int, default=2000, help="calls in flight at the same time")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they stay in flight")
    parser.add_argument("--rows", type=int, default=1_000_000, help="stored requests")
    parser.add_argument("--out", type=Path, default=report.FOLDER, help="folder of the figures and the chart")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
