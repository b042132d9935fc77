"""The only place that imports prometheus_client: makers of metrics, and their text form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, Gauge, Histogram, generate_latest

Labelled = TypeVar("Labelled", Counter, Histogram)

_CHILDREN_KEPT_MAX: Final = 1024
_SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


def counter(name: str, description: str, labels: Sequence[str] = (), *, from_zero: Sequence[str] = ()) -> Counter:
    """A count that only grows, `parley_<name>_total`. An increase is seen from the second reading on, so the values
    of its one label that an alert waits for are counted `from_zero`, before the first of them happens."""
    made = _with_kept_children(Counter(f"parley_{name}", description, labels))
    for value in from_zero:
        made.labels(value)
    return made


def gauge(name: str, description: str, labels: Sequence[str] = ()) -> Gauge:
    """A value that goes up and down, `parley_<name>`."""
    return Gauge(f"parley_{name}", description, labels)


def histogram(name: str, description: str, labels: Sequence[str] = ()) -> Histogram:
    """A distribution of durations in seconds, `parley_<name>`."""
    return _with_kept_children(Histogram(f"parley_{name}", description, labels, buckets=_SECONDS_BUCKETS))


def exposition() -> tuple[bytes, str]:
    """Every metric of this process in the text format, and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST


def _with_kept_children(metric: Labelled) -> Labelled:
    """`labels` by one look-up: the library's own checks and renders its arguments each time, under a lock. Not for a
    metric that is ever cleared or loses a child."""
    metric.labels = lru_cache(maxsize=_CHILDREN_KEPT_MAX, typed=True)(metric.labels)  # type: ignore[method-assign]
    return metric
