"""The chart that the README shows: Parley beside the raw pipeline, and where the CPU of one request goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PARLEY, RAW, STEPS, LIMIT = "#2f6f9f", "#b9c4cc", "#93a1ab", "#c0392b"
THROUGHPUT_LEAST = 0.6
LATENCY_BARS = (("raw", RAW), ("steps", STEPS), ("parley", PARLEY))
LABELLED_SHARE = 0.07
"""Of the widest bar; what is narrower has no room for a label."""
PROCESSES = {
    "front": "#d5dce1",
    "worker": "#b9c4cc",
    "store": "#93a1ab",
    "gateway": "#2f6f9f",
    "orchestrator": "#4f93c4",
    "billing": "#7db3d8",
    "results": "#a9cfe8",
    "postgres": "#58788c",
    "rabbitmq": "#d98e4a",
}


def draw(report: Mapping[str, Any], file: Path) -> None:
    """Needs the figures of the part `raw`; without them there is nothing to draw."""
    if "compare" not in report:
        return
    # Only a benchmark needs it: not installed with the rest.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    scenarios = report["compare"]["scenarios"]
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": "#222"})
    figure, (throughput, latency, cpu) = plt.subplots(1, 3, figsize=(12, 3.8), width_ratios=(1, 1, 1.4))
    _throughput(throughput, {name: one for name, one in scenarios.items() if "in flight" in name and name[:2] != "1 "})
    _latency(latency, {name: one for name, one in scenarios.items() if name[:2] == "1 " or "requests/s" in name})
    _cpu(cpu, next(iter(scenarios.values())))
    measured = report["compare"]["measured"]
    figure.suptitle(
        "Parley and the raw pipeline (the same job without any promise), same broker, database and provider; "
        f"{measured['cores']} cores, medians",
        fontsize=10,
    )
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _throughput(axes: Any, scenarios: Mapping[str, Any]) -> None:
    for place, one in enumerate(scenarios.values()):
        raw, parley = (one["medians"][name]["throughput_per_second"] for name in ("raw", "parley"))
        axes.bar(place - 0.2, raw, 0.38, color=RAW, label="raw" if place == 0 else None)
        axes.bar(place + 0.2, parley, 0.38, color=PARLEY, label="Parley" if place == 0 else None)
        axes.text(place + 0.2, parley / 2, f"{one['ratios']['throughput']:.2f}", ha="center", color="white")
        axes.plot([place, place + 0.4], [THROUGHPUT_LEAST * raw] * 2, color=LIMIT, linestyle=":", linewidth=1.2)
    axes.set_xticks(range(len(scenarios)), [name.replace(", ", "\n") for name in scenarios])
    axes.set_title(f"requests/s (dotted: {THROUGHPUT_LEAST} of raw)")
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])
    axes.legend(frameon=False, ncols=2, loc="upper left")


def _latency(axes: Any, scenarios: Mapping[str, Any]) -> None:
    for place, one in enumerate(scenarios.values()):
        bars = [(name, colour) for name, colour in LATENCY_BARS if name in one["medians"]]
        width = 0.8 / len(bars)
        raw_p50 = one["medians"]["raw"]["added_p50_ms"]
        for number, (name, colour) in enumerate(bars):
            middle = place - 0.4 + width * (number + 0.5)
            p50, p99 = (one["medians"][name][f"added_{p}_ms"] for p in ("p50", "p99"))
            axes.bar(middle, p99, 0.95 * width, color=colour, alpha=0.35)
            axes.bar(middle, p50, 0.95 * width, color=colour, label=name if len(bars) == len(LATENCY_BARS) else None)
            axes.text(middle, p99, f"{p50 / raw_p50:.1f}x", ha="center", va="bottom")
    axes.legend(frameon=False, loc="upper left")
    axes.set_xticks(range(len(scenarios)), [name.replace(", ", "\n") for name in scenarios])
    axes.set_title("added latency in ms, p50 and (pale) p99")


def _cpu(axes: Any, scenario: Mapping[str, Any]) -> None:
    medians = scenario["medians"]
    widest = max(medians[name]["cpu_ms"] for name in ("parley", "raw"))
    for place, name in enumerate(("parley", "raw")):
        by_process = medians[name]["cpu_ms_by_process"]
        left = 0.0
        for process, colour in PROCESSES.items():
            used = by_process.get(process, 0.0)
            axes.barh(place, used, left=left, color=colour, edgecolor="white")
            if used > LABELLED_SHARE * widest:
                axes.text(left + used / 2, place, f"{process}\n{used:.1f}", ha="center", va="center", fontsize=7)
            left += used
        axes.text(left, place, f" {left:.1f}", va="center")
    axes.set_yticks([0, 1], ["Parley", "raw"])
    axes.set_title("CPU of one request in ms, 64 in flight")
