"""What group commit costs where there is nothing to group: one request in flight, with it on and with it off."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bench import load
from bench.bed import say, set_provider
from bench.compare import line
from bench.load import Load
from bench.measuring import Figures, measured, median
from bench.systems import Parley


async def compare_on_and_off(
    on: Parley, off: Parley, servers: Mapping[str, int], *, scale: float, rounds: int
) -> dict[str, Any]:
    """Two stacks side by side, asked in turns as everywhere here; only one of them is busy at a time."""
    what = Load(max(10, round(300 * scale)), in_flight=1)
    say(f"group commit on and off, {what.count} requests a run")
    systems = {"on": on, "off": off}
    runs: dict[str, list[Figures]] = {"on": [], "off": []}
    async with load.client() as http:
        for system in systems.values():
            set_provider(system, first_byte_ms=0)
            await measured(system, http, Load(max(5, what.count // 5), in_flight=1), servers, provider_ms=0)
        for number in range(rounds):
            for name in ("on", "off") if number % 2 == 0 else ("off", "on"):
                figures = await measured(systems[name], http, what, servers, provider_ms=0)
                runs[name].append(figures)
                say(f"  {name:4}{line(figures)}")
    medians = {name: median(of) for name, of in runs.items()}
    ratio = medians["on"].added_p50_ms / medians["off"].added_p50_ms
    say(f"  on to off: added latency p50 {ratio:.2f}")
    return {
        "ratio_added_p50": ratio,
        "ratio_accept_p50": medians["on"].accept_p50_ms / medians["off"].accept_p50_ms,
        "medians": {name: asdict(figures) for name, figures in medians.items()},
    }
