"""Counters of processes that die and come back: what each had counted before is kept."""

from __future__ import annotations

import re
from collections import defaultdict
from urllib.request import ProxyHandler, build_opener

SCRAPE_SECONDS = 2.0
_SAMPLE = re.compile(r"^(?P<name>[a-z_:]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_opener = build_opener(ProxyHandler({}))

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Metrics:
    """`keep` takes a process's counters before it is ended; `total` sums over all lives of all processes."""

    def __init__(self) -> None:
        self._last: dict[str, Samples] = {}
        self._former: defaultdict[str, list[Samples]] = defaultdict(list)

    def scrape(self, name: str, ops_url: str) -> None:
        """Best effort: a process that does not answer keeps what it last said."""
        try:
            with _opener.open(f"{ops_url}/metrics", timeout=SCRAPE_SECONDS) as answer:
                self._last[name] = parse(answer.read().decode())
        except OSError:
            return

    def restarted(self, name: str) -> None:
        """The next scrape of this process begins at zero."""
        if name in self._last:
            self._former[name].append(self._last.pop(name))

    def total(self, metric: str, **labels: str) -> float:
        lives = [*self._last.values(), *(life for lives in self._former.values() for life in lives)]
        return sum(value for life in lives for key, value in life.items() if _matches(key, metric, labels))

    def now(self, metric: str, **labels: str) -> float:
        """Over the processes that live: for gauges."""
        return sum(
            value for life in self._last.values() for key, value in life.items() if _matches(key, metric, labels)
        )


def parse(text: str) -> Samples:
    found: Samples = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample:
            labels = tuple(sorted(_LABEL.findall(sample["labels"] or "")))
            found[sample["name"], labels] = float(sample["value"])
    return found


def _matches(key: tuple[str, tuple[tuple[str, str], ...]], metric: str, labels: dict[str, str]) -> bool:
    return key[0] == metric and labels.items() <= dict(key[1]).items()
