"""When to try again, and when to give up. Pure: instants, counts and chance come in, a pause or a reason goes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from services.orchestrator.task import ATTEMPT_NUMBER_MAX, FailureKind
from shared.contracts.content import Failure, WaitingOn
from shared.contracts.orchestrator import AttemptRecord

QUICK_SECONDS_MAX: Final = 2.0
"""What one claim may sleep in the process, all its pauses together; what is longer waits in the database."""

PAUSE_SECONDS_BASE: Final = 0.5
PAUSE_SECONDS_MAX: Final = 30.0
PERMIT_PAUSE_SECONDS_MAX: Final = 15.0
RETRY_AFTER_SECONDS_MIN: Final = 1.0
RETRY_AFTER_SECONDS_MAX: Final = 366 * 86_400.0
"""Beyond every deadline, and still an instant that a clock can show."""
CLOCK_MARGIN_SECONDS: Final = 0.05
"""Our sample of the database's clock may be some milliseconds early; a provider's wait must not be."""

INVALID_OUTPUTS_MAX: Final = 3
"""The first one and two repeats."""

Again = Literal["anywhere", "elsewhere", "nowhere"]

AGAIN: Final[Mapping[str, Again]] = {
    # One entry for each FailureKind.
    "rate_limited": "anywhere",
    "server_error": "anywhere",
    "connect_failed": "anywhere",
    "timed_out": "anywhere",
    "stalled": "anywhere",
    "cut": "anywhere",
    "malformed": "anywhere",
    "empty": "anywhere",
    "invalid_output": "anywhere",
    # These deployments stay as they are until a person changes something.
    "quota_exhausted": "elsewhere",
    "unauthorized": "elsewhere",
    "not_found": "elsewhere",
    # The request itself is the reason, wherever it goes.
    "rejected": "nowhere",
    "too_large": "nowhere",
}

_NOT_SPENT: Final = frozenset({"worker_lost", "handed_back", "cancelled", "deadline"})


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float | None:
    """What a reply's headers (lower-case names) say about when to come back; None where they say nothing usable.

    The more exact `retry-after-ms` wins. A date is read against the reply's own `Date`, so a provider's wrong clock
    does not matter.
    """
    seconds = _seconds_said(headers, now)
    return None if seconds is None else min(max(0.0, seconds), RETRY_AFTER_SECONDS_MAX)


def _seconds_said(headers: Mapping[str, str], now: datetime) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None:
        return seconds
    until = _date(text)
    return None if until is None else (until - (_date(headers.get("date")) or now)).total_seconds()


def _number(text: str | None) -> float | None:
    """The greatest of a list, which is what comes of a header that a proxy has added once more."""
    numbers = []
    for part in (text or "").split(","):
        with suppress(ValueError):
            numbers.append(float(part))
    return max((number for number in numbers if math.isfinite(number) and number >= 0), default=None)


def _date(text: str | None) -> datetime | None:
    try:
        instant = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    # A zone of -0000 parses without one; then it cannot be compared, and HTTP permits GMT only.
    return instant if instant.tzinfo is not None else None


def full_jitter_seconds(failures: int, chance: float) -> float:
    """A pause after the n-th failure: `chance` (0 to 1) of a ceiling that doubles with each."""
    return chance * min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_BASE * 2.0 ** min(failures - 1, 16))


def closed_seconds(retry_after: float, failures: int, chance: float) -> float:
    """For how long a quota domain is closed by a Retry-After: never shorter, and never a hot loop."""
    if retry_after >= RETRY_AFTER_SECONDS_MIN:
        return retry_after + CLOCK_MARGIN_SECONDS
    return max(retry_after, full_jitter_seconds(failures, chance)) + CLOCK_MARGIN_SECONDS


def permit_pause_seconds(waited_seconds: float, chance: float) -> float:
    """A pause before billing is asked again: half as long as it was waited for, so it grows without a counter."""
    return max(1.0, min(PERMIT_PAUSE_SECONDS_MAX, waited_seconds / 2)) * (0.75 + chance / 2)


def waiting_on(kind: FailureKind) -> WaitingOn:
    return "provider_rate_limit" if kind == "rate_limited" else "retry_backoff"


def spent(attempts: Sequence[AttemptRecord]) -> int:
    """Attempts that count against the budget. A provider that says when to come back costs none: the deadline
    bounds it. Neither does one that our own stop or crash ended."""
    return sum(1 for attempt in attempts if attempt.outcome not in _NOT_SPENT and not _told_when(attempt))


def _told_when(attempt: AttemptRecord) -> bool:
    return attempt.outcome == "rate_limited" and attempt.retry_after_seconds is not None


def dead_deployments(attempts: Sequence[AttemptRecord]) -> frozenset[str]:
    """Where this request is never sent again."""
    dead = {kind for kind, again in AGAIN.items() if again == "elsewhere"}
    return frozenset(attempt.deployment for attempt in attempts if attempt.outcome in dead)


def give_up(attempts: Sequence[AttemptRecord], attempts_max: int, *, deployment_left: bool) -> Failure | None:
    """Why there is no further attempt after the last one of `attempts`; None while there is."""
    last = attempts[-1]
    again = AGAIN.get(last.outcome)
    if again == "nowhere" or not deployment_left:
        return Failure(code=_CODES.get(last.outcome, "provider_failed"), message=f"{_SENTENCE} {described(last)}.")
    if sum(1 for attempt in attempts if attempt.outcome == "invalid_output") >= INVALID_OUTPUTS_MAX:
        return Failure(
            code="invalid_output",
            message=f"The model's output did not match the response format in {INVALID_OUTPUTS_MAX} attempts.",
        )
    if spent(attempts) >= attempts_max or last.attempt >= ATTEMPT_NUMBER_MAX:
        return Failure(
            code="attempts_exhausted",
            message=f"No provider answered in {last.attempt} attempts; the last one ended with {described(last)}.",
        )
    return None


_SENTENCE = "No provider could take this request; the last answer was"

_CODES: Final[Mapping[str, str]] = {
    "rejected": "provider_rejected",
    "too_large": "output_too_large",
    "quota_exhausted": "provider_quota_exhausted",
    "unauthorized": "provider_misconfigured",
    "not_found": "provider_misconfigured",
}


def described(attempt: AttemptRecord) -> str:
    """An attempt's outcome for a sentence; never the provider's own text, which may quote the prompt or a key."""
    details = [f"HTTP {attempt.http_status}"] if attempt.http_status else []
    details += [attempt.error_code] if attempt.error_code else []
    return f"{attempt.outcome} ({', '.join(details)})" if details else attempt.outcome


def deadline_exceeded(attempts: Sequence[AttemptRecord], waited_for: WaitingOn | None = None) -> Failure:
    """The one failure that says that time ran out, with what stood in the way."""
    reason = f" It waited for {waited_for}." if waited_for else ""
    if attempts and attempts[-1].outcome not in ("succeeded", "deadline"):
        reason += f" The last attempt ended with {described(attempts[-1])}."
    return Failure(code="deadline_exceeded", message=f"The request could not end before its deadline.{reason}")
