"""The bounded log of API calls, and the scripted faults that match them."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from deploy.local.standins.rules import Match
from deploy.local.standins.waiting import Watch


@dataclass(slots=True)
class ApiCall:
    number: int
    method: str
    path: str
    headers: dict[str, str]
    key_hash: str | None
    params: dict[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    replayed: bool = False
    request_id: str = ""
    status: int | None = None
    object_id: str | None = None
    fault: int | None = None
    arrived_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None


@dataclass(frozen=True, slots=True)
class CallMatch:
    """`path` is a pattern: `/v1/subscriptions/*`. Every field given must hold."""

    method: str | None = None
    path: str = "*"
    param: dict[str, str] = field(default_factory=dict)

    def holds(self, call: ApiCall) -> bool:
        return (
            (self.method is None or self.method.upper() == call.method)
            and fnmatchcase(call.path, self.path)
            and all(call.params.get(name) == value for name, value in self.param.items())
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one API call. `when` after: the change is made and remembered, but the reply is lost.

    `remembered` keeps the scripted error under the request's idempotency key, as Stripe keeps a 500 of its own.
    """

    status: int | None = None
    error: dict[str, Any] | None = None
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    latency_ms: float = 0
    latency_after_ms: float = 0
    drop: bool = False
    remembered: bool = False
    gate_after: str | None = None
    when: Literal["before", "after"] = "before"


def no_key(_: ApiCall | Match[ApiCall]) -> None:
    """API rules are few: none is found by a key."""


class CallLog:
    def __init__(self, calls_max: int, watch: Watch) -> None:
        self._calls: deque[ApiCall] = deque(maxlen=calls_max)
        self._watch = watch
        self._numbers = self._total = self._in_flight = self._held = 0

    def begin(self, method: str, path: str, headers: dict[str, str], key_hash: str | None) -> ApiCall:
        self._numbers += 1
        self._total += 1
        self._in_flight += 1
        call = ApiCall(self._numbers, method, path, headers, key_hash)
        self._calls.append(call)
        self._watch.changed()
        return call

    def end(self, call: ApiCall) -> None:
        call.ended_at = time.monotonic()
        self._in_flight -= 1
        self._watch.changed()

    def held(self, _: ApiCall, change: int) -> None:
        self._held += change
        self._watch.changed()

    def counters(self) -> dict[str, int]:
        return {"calls": self._total, "in_flight": self._in_flight, "held_calls": self._held}

    def select(self, query: Mapping[str, str], after: int, limit: int) -> list[dict[str, Any]]:
        match = CallMatch(query.get("method"), query.get("path", "*"))
        found = [call for call in self._calls if call.number > after and match.holds(call)]
        if "object_id" in query:
            found = [call for call in found if call.object_id == query["object_id"]]
        return [asdict(call) for call in found[:limit]]

    def clear(self) -> None:
        self._calls.clear()
        self._total = self._in_flight
        self._watch.changed()
