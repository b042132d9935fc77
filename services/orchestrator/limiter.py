"""Token buckets of the providers, as pure arithmetic on the bucket row that the caller has locked.

A bucket holds one minute's worth and refills continuously, so over any window the calls let through are at most the
capacity plus rate times window. Times are instants of the database's clock; rates are per minute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

QUEUE_AHEAD_SECONDS_MAX: Final = 10.0
"""Nobody is sent away for longer: estimates are corrected by then, and there may be room earlier."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a quota domain permits; None is unlimited."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True, slots=True)
class Bucket:
    """The row of one quota domain. A level of None is one that was never limited: it starts full."""

    name: str
    refilled_at: datetime
    requests: float | None = None
    tokens: float | None = None
    closed_until: datetime | None = None
    """A provider's Retry-After: no call of the domain before it."""
    queue_until: datetime | None = None
    """The place after the last one that was sent away: newcomers queue behind it."""


@dataclass(frozen=True, slots=True)
class Admitted:
    bucket: Bucket


@dataclass(frozen=True, slots=True)
class NotBefore:
    bucket: Bucket
    due: datetime


class NeverFits(Exception):
    """The cost exceeds what a full bucket holds: waiting would not help."""


def _level(level: float | None, per_minute: float | None, seconds: float) -> float | None:
    if per_minute is None:
        return None
    return per_minute if level is None else min(per_minute, level + per_minute / 60 * seconds)


def refill(bucket: Bucket, limits: Limits, now: datetime) -> Bucket:
    # Replicas' clocks differ by milliseconds: an earlier `now` must not take back what was refilled.
    seconds = max(0.0, (now - bucket.refilled_at).total_seconds())
    return replace(
        bucket,
        refilled_at=max(now, bucket.refilled_at),
        requests=_level(bucket.requests, limits.requests_per_minute, seconds),
        tokens=_level(bucket.tokens, limits.tokens_per_minute, seconds),
    )


def _seconds_until(level: float | None, wanted: float, per_minute: float | None) -> float:
    if level is None or per_minute is None or level >= wanted:
        return 0.0
    return (wanted - level) * 60 / per_minute


def _place_seconds(limits: Limits, tokens: int) -> float:
    """How much of the domain's time one call of this cost takes up."""
    by_requests = 60 / limits.requests_per_minute if limits.requests_per_minute else 0.0
    by_tokens = tokens * 60 / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
    return max(by_requests, by_tokens)


def _after(start: datetime, seconds: float) -> datetime:
    # Rounded up, so that the level has surely arrived at the instant named.
    return start + timedelta(microseconds=math.ceil(seconds * 1e6))


def admit(bucket: Bucket, limits: Limits, tokens: int, now: datetime, *, queued: bool) -> Admitted | NotBefore:
    """Debit one call of `tokens`, or say when to come again. `queued`: this call was sent away before."""
    if limits.tokens_per_minute is not None and tokens > limits.tokens_per_minute:
        raise NeverFits
    bucket = refill(bucket, limits, now)
    shortage_seconds = max(
        _seconds_until(bucket.requests, 1.0, limits.requests_per_minute),
        _seconds_until(bucket.tokens, tokens, limits.tokens_per_minute),
    )
    ready = max(_after(bucket.refilled_at, shortage_seconds) if shortage_seconds else now, bucket.closed_until or now)
    queue = bucket.queue_until if bucket.queue_until and bucket.queue_until > now else None
    if ready <= now and (queued or queue is None):
        return Admitted(_debited(bucket, tokens))
    # Who waited already keeps its place; a newcomer goes behind those who were sent away before it.
    due = ready if queued or queue is None else max(ready, queue)
    due = max(ready, min(due, _after(now, QUEUE_AHEAD_SECONDS_MAX)))
    behind = _after(due, _place_seconds(limits, tokens))
    return NotBefore(replace(bucket, queue_until=max(behind, queue) if queue else behind), due)


def _debited(bucket: Bucket, tokens: int) -> Bucket:
    return replace(
        bucket,
        requests=None if bucket.requests is None else bucket.requests - 1,
        tokens=None if bucket.tokens is None else bucket.tokens - tokens,
    )


def settled(bucket: Bucket, limits: Limits, tokens_back: int) -> Bucket:
    """What was reserved and not used flows back, up to a full bucket; a debt is paid by the refill."""
    if bucket.tokens is None or limits.tokens_per_minute is None:
        return bucket
    return replace(bucket, tokens=min(limits.tokens_per_minute, bucket.tokens + tokens_back))


def closed(bucket: Bucket, until: datetime) -> Bucket:
    """A provider said when it takes calls again; an earlier word never shortens a later one."""
    return replace(bucket, closed_until=max(until, bucket.closed_until or until))


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere a call could go: a deployment's name and the quota domain it draws on."""

    deployment: str
    domain: str


@dataclass(frozen=True, slots=True)
class Placed:
    deployment: str


@dataclass(frozen=True, slots=True)
class ComeBack:
    due: datetime


@dataclass(frozen=True, slots=True)
class TooCostly:
    """No deployment could ever take this many tokens."""


Placement = Placed | ComeBack | TooCostly


class Ledger:
    """The locked bucket rows of one transaction: places calls one after the other and remembers the new levels."""

    def __init__(self, buckets: Mapping[str, Bucket], limits: Mapping[str, Limits], now: datetime) -> None:
        self._buckets = dict(buckets)
        self._limits = limits
        self._now = now
        self._touched: set[str] = set()

    def close(self, domain: str, until: datetime) -> None:
        self._keep(closed(self._buckets[domain], until))

    def give_back(self, domain: str, tokens: int) -> None:
        """Settle an estimate to the truth; negative where a call used more than was reserved."""
        self._keep(settled(self._buckets[domain], self._limits[domain], tokens))

    def withdraw(self, domain: str, tokens: int) -> None:
        """A call that was placed here is not made after all."""
        bucket, limit = self._buckets[domain], self._limits[domain].requests_per_minute
        if bucket.requests is not None and limit is not None:
            bucket = replace(bucket, requests=min(limit, bucket.requests + 1))
        self._keep(settled(bucket, self._limits[domain], tokens))

    def place(self, places: Sequence[Place], tokens: int, *, queued: bool) -> Placement:
        """The first place that takes the call now, else the earliest instant at which one of them may."""
        refusals: list[NotBefore] = []
        for place in places:
            try:
                answer = admit(
                    self._buckets[place.domain], self._limits[place.domain], tokens, self._now, queued=queued
                )
            except NeverFits:
                continue
            if isinstance(answer, Admitted):
                self._keep(answer.bucket)
                return Placed(place.deployment)
            refusals.append(answer)
        if not refusals:
            return TooCostly()
        earliest = min(refusals, key=lambda refusal: refusal.due)
        self._keep(earliest.bucket)
        return ComeBack(earliest.due)

    def changed(self) -> list[Bucket]:
        """The rows to write back, in the order in which they were locked."""
        return [self._buckets[name] for name in sorted(self._touched)]

    def _keep(self, bucket: Bucket) -> None:
        self._buckets[bucket.name] = bucket
        limits = self._limits[bucket.name]
        limited = limits.requests_per_minute is not None or limits.tokens_per_minute is not None
        if limited or bucket.closed_until is not None:
            self._touched.add(bucket.name)
