"""Writes docs/metrics.md: every metric of the code, with what it counts, its labels and the file that is its home."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

import services
import shared

ROOT: Final = Path(__file__).parents[1]
FILE: Final = ROOT / "docs" / "metrics.md"

_PACKAGES: Final = (
    ("shared", "Of every process"),
    ("services.gateway", "Of the gateway"),
    ("services.orchestrator", "Of the orchestrator"),
    ("services.billing", "Of billing"),
    ("services.results", "Of results"),
)
_HEAD: Final = """# Metrics

Generated from the code by `make openapi`; a test compares. Every process shows its own at `/metrics` on its `OPS_PORT`.
A histogram has `_bucket`, `_sum` and `_count`, in seconds. No label holds an id, or text of a user's.
[operations.md](operations.md) has the alerts and what to do.
"""


@dataclass(frozen=True)
class Metric:
    """One metric as Prometheus knows it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    description: str
    home: str

    def series(self) -> tuple[str, ...]:
        """The names that a query may use."""
        if self.kind == "histogram":
            return tuple(f"{self.name}{end}" for end in ("_bucket", "_sum", "_count"))
        return (self.name,)


def catalogue() -> list[Metric]:
    """Every metric that a module of the product makes, by name."""
    for package in (services, shared):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
    modules = [module for name, module in sys.modules.items() if name.startswith(("services.", "shared."))]
    found_metrics = {metric.name: metric for module in modules for metric in _metrics_of(module)}
    return sorted(found_metrics.values(), key=lambda metric: metric.name)


def _metrics_of(module: ModuleType) -> Iterator[Metric]:
    for value in vars(module).values():
        if isinstance(value, MetricWrapperBase):
            kind = str(value._type)
            name = f"{value._name}_total" if kind == "counter" else value._name
            yield Metric(name, kind, tuple(value._labelnames), value._documentation, module.__name__)


def text() -> str:
    metrics = catalogue()
    sections = [_HEAD]
    for package, title in _PACKAGES:
        rows = [metric for metric in metrics if metric.home.startswith(f"{package}.")]
        lines = [
            f"| `{metric.name}` | {metric.kind} | {' '.join(f'`{label}`' for label in metric.labels)} "
            f"| {metric.description} | `{metric.home.replace('.', '/')}.py` |"
            for metric in rows
        ]
        sections.append(
            "\n".join(
                (f"## {title}", "", "| metric | kind | labels | what | home |", "|---|---|---|---|---|", *lines, "")
            )
        )
    return "\n".join(sections)


if __name__ == "__main__":
    FILE.write_text(text())
