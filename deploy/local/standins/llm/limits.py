"""The provider's own rate limit: two token buckets behind x-ratelimit-*, and 429 when told to enforce them."""

import math
import time
from dataclasses import dataclass, field

_SECONDS_PER_MINUTE = 60


@dataclass(slots=True)
class Bucket:
    per_minute: float
    level: float = 0
    at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        if self.per_minute <= 0:
            raise ValueError("a limit per minute must be above 0")
        self.level = self.per_minute

    def refill(self) -> None:
        now = time.monotonic()
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / _SECONDS_PER_MINUTE)
        self.at = now

    def seconds_until(self, amount: float) -> float:
        return max(0.0, (amount - self.level) * _SECONDS_PER_MINUTE / self.per_minute)

    @property
    def seconds_until_full(self) -> float:
        return self.seconds_until(self.per_minute)


@dataclass(slots=True)
class Limits:
    requests_per_minute: float = 1_000_000
    tokens_per_minute: float = 1_000_000_000
    enforce: bool = False
    requests: Bucket = field(init=False)
    tokens: Bucket = field(init=False)

    def __post_init__(self) -> None:
        self.requests = Bucket(self.requests_per_minute)
        self.tokens = Bucket(self.tokens_per_minute)

    def take(self, tokens: int) -> float:
        """Debit one call; gives the seconds to wait when the limit is enforced and the call does not fit."""
        needs = ((self.requests, 1), (self.tokens, tokens))
        for bucket, _ in needs:
            bucket.refill()
        wait = max(bucket.seconds_until(amount) for bucket, amount in needs)
        if self.enforce and wait > 0:
            return wait
        for bucket, amount in needs:
            bucket.level = max(0.0, bucket.level - amount)
        return 0.0

    def headers(self) -> dict[str, str]:
        headers = {}
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            headers[f"x-ratelimit-limit-{name}"] = str(int(bucket.per_minute))
            headers[f"x-ratelimit-remaining-{name}"] = str(int(bucket.level))
            headers[f"x-ratelimit-reset-{name}"] = go_duration(bucket.seconds_until_full)
        return headers


def go_duration(seconds: float) -> str:
    """Write a duration as Go does and OpenAI sends it: 12ms, 1s, 6m0s, 1h2m3s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    text = f"{whole % 60}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
