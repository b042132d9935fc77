"""The bounded log of calls and the counters a test can await, overall and per marker."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deploy.local.standins.llm.call import Call, messages_text
from deploy.local.standins.waiting import Watch

# More markers than this and the oldest lose their counters.
MARKERS_MAX = 50_000
# Parsed bodies take some times their size: this bounds the log to some hundred megabytes.
KEPT_BYTES_MAX = 64 * 1024 * 1024


@dataclass(slots=True)
class Counts:
    calls: int = 0
    in_flight: int = 0
    peak_in_flight: int = 0
    held: int = 0
    ended: int = 0
    client_gone: int = 0

    def begun(self) -> None:
        self.calls += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def finished(self, outcome: str) -> None:
        self.in_flight -= 1
        self.ended += 1
        self.client_gone += outcome == "client_gone"

    def view(self) -> dict[str, int]:
        return {
            "calls": self.calls,
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "held": self.held,
            "ended": self.ended,
            "client_gone": self.client_gone,
        }


_NONE = Counts()


class CallLog:
    def __init__(self, calls_max: int) -> None:
        self.watch = Watch()
        self.total = Counts()
        self._of_marker: dict[str, Counts] = {}
        self._calls: deque[Call] = deque()
        self._calls_max = calls_max
        self._kept_bytes = 0
        self._numbers = 0

    def begin(self, headers: dict[str, str], key_hash: str | None) -> Call:
        self._numbers += 1
        call = Call(self._numbers, headers, key_hash)
        self._calls.append(call)
        self._forget_oldest()
        self.total.begun()
        return call

    def known(self, call: Call) -> None:
        """The body was read, so the marker is known: only now do waiters learn of the call."""
        if call.marker is not None:
            self._counts(call.marker).begun()
        self.watch.changed()

    def held(self, call: Call, change: int) -> None:
        for counts in self._all_counts(call):
            counts.held += change
        self.watch.changed()

    def end(self, call: Call, outcome: str, at: float) -> None:
        call.outcome, call.ended_at = outcome, at
        if call.logged:
            self._kept_bytes += call.shrink()
        for counts in self._all_counts(call):
            counts.finished(outcome)
        self.watch.changed()

    def counters(self, marker: str | None = None) -> Mapping[str, int]:
        return (self.total if marker is None else self._of_marker.get(marker, _NONE)).view()

    def select(self, query: Mapping[str, str], after: int, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for call in self._matching(query, after):
            if len(found) == limit:
                break
            found.append(call.view())
        return found

    def clear(self) -> None:
        """Forget finished calls; those under way stay counted, or the counters would go below zero."""
        running = [call for call in self._calls if call.ended_at is None]
        self._calls.clear()
        self._calls.extend(running)
        self._kept_bytes = 0
        self.total = self._restarted(self.total)
        self._of_marker = {m: self._restarted(c) for m, c in self._of_marker.items() if c.in_flight}
        self.watch.changed()

    def _forget_oldest(self) -> None:
        while len(self._calls) > self._calls_max or self._kept_bytes > KEPT_BYTES_MAX:
            gone = self._calls.popleft()
            gone.logged = False
            if gone.ended_at is not None:
                self._kept_bytes -= gone.body_bytes

    @staticmethod
    def _restarted(counts: Counts) -> Counts:
        # The same object must go on counting for the calls under way.
        running = counts.in_flight
        counts.calls = counts.peak_in_flight = running
        counts.ended = counts.client_gone = 0
        return counts

    def _counts(self, marker: str) -> Counts:
        counts = self._of_marker.get(marker)
        if counts is None:
            if len(self._of_marker) >= MARKERS_MAX:
                del self._of_marker[next(iter(self._of_marker))]
            counts = self._of_marker[marker] = Counts()
        return counts

    def _all_counts(self, call: Call) -> Iterator[Counts]:
        yield self.total
        if call.marker is not None and call.marker in self._of_marker:
            yield self._of_marker[call.marker]

    def _matching(self, query: Mapping[str, str], after: int) -> Iterator[Call]:
        for call in self._calls:
            if call.number <= after:
                continue
            fields = {
                "marker": call.marker,
                "outcome": call.outcome,
                "status": str(call.status),
                "model": call.body.get("model"),
                "behaviour": call.behaviour,
                "key_hash": call.key_hash,
            }
            if any(query[name] != fields[name] for name in fields if name in query):
                continue
            if "contains" not in query or query["contains"] in messages_text(call.body):
                yield call
