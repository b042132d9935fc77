"""Limits of the providers: every window, by the buckets' own journal and by the provider's log; and no Retry-After is
undercut, whichever call and whichever replica it was."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

from tests.support.faults.buckets import Arrival, flowing_back, steps, worst_arrivals, worst_excess
from tests.support.faults.evidence import Evidence, Row
from tests.support.faults.invariants.provider import CLOCK_SLACK_SECONDS, calls_by_request
from tests.support.faults.report import Violation

Unit = Literal["requests", "tokens"]
_FLOAT_ERROR = 1e-3
"""Of a call or token: the provider's stamps are floating point."""


def debits_of_a_domain_follow_each_other(evidence: Evidence) -> Iterator[Violation]:
    """An attempt starts when its bucket was debited, so the rows of all replicas tell the order of the debits. Without
    limits nothing is debited: there each goes by its own reading of the clock."""
    journal = _journal(evidence)
    for domain in sorted({domain for domain, _, _ in _limits(evidence)}):
        last: datetime | None = None
        for entry in journal[domain]:
            at = entry["debited_at"]
            if at is not None and last is not None and at < last:
                yield Violation("unexpected", domain, f"was debited as of {at}, after a debit as of {last}")
            last = at or last


def each_bucket_keeps_its_limits(evidence: Evidence) -> Iterator[Violation]:
    """Exact: capacity + rate x window, for the window from any debit to any other."""
    journal = _journal(evidence)
    for domain, unit, per_minute in _limits(evidence):
        excess = worst_excess(steps(journal[domain], unit), per_minute)
        if excess > 0:
            yield Violation("unexpected", domain, f"a window of its debits has {float(excess):.6f} {unit} too many")


def the_providers_log_keeps_the_limits(evidence: Evidence) -> Iterator[Violation]:
    """The same by the provider's own stamps, less exact by what is measured: see worst_arrivals."""
    journal, debits = _journal(evidence), _debits(evidence)
    for domain, unit, per_minute in _limits(evidence):
        seen = _arrivals(evidence, debits, journal[domain], unit)
        excess = worst_arrivals(seen, flowing_back(journal[domain], unit), per_minute)
        if excess > _FLOAT_ERROR:
            yield Violation("unexpected", domain, f"a window of the provider's log has {excess:.3f} {unit} too many")


def no_attempt_starts_in_a_closed_domain(evidence: Evidence) -> Iterator[Violation]:
    """From the commit on that closes it, that commit's own attempts included."""
    for domain, entries in _journal(evidence).items():
        closed_until: datetime | None = None
        for transaction in _transactions(entries):
            closings = [entry["closed_until"] for entry in transaction if entry["closed_until"] is not None]
            closed_until = max([*closings, *([closed_until] if closed_until else [])], default=None)
            for entry in transaction:
                at = entry["debited_at"]
                if at is not None and closed_until is not None and at < closed_until:
                    text = f"{domain} is closed until {closed_until}, attempt {entry['attempt']} started at {at}"
                    yield Violation("unexpected", str(entry["request_id"]), text)


def each_retry_after_closes_its_domain(evidence: Evidence) -> Iterator[Violation]:
    """For as long as the provider said, counted from its answer by its own clock; and while that lasts only calls
    arrive whose attempts were committed before the closing was: the k-th call of a request needs k of those."""
    journal, debits, calls_of = _journal(evidence), _debits(evidence), calls_by_request(evidence)
    told = {
        (row["request_id"], row["attempt"]): row["retry_after_seconds"]
        for row in evidence.rows["attempts"]
        if row["outcome"] == "rate_limited" and row["retry_after_seconds"]
    }
    for call in evidence.calls:
        debit = debits.get(call["number"])
        seconds = told.get((debit["request_id"], debit["attempt"])) if debit else None
        if debit is None or seconds is None or call["status"] != 429:
            continue
        domain, until = _domain(evidence, debit), call["ended"] + seconds
        closings = [entry for entry in journal[domain] if entry["closed_until"] is not None]
        closing = next((entry for entry in closings if entry["closed_until"].timestamp() >= until), None)
        if closing is None:
            yield Violation("unexpected", debit["request_id"], f"nothing is closed for the {seconds} s of its 429")
            continue
        before = Counter(row["request_id"] for row in evidence.rows["journal"] if _debited_before(row, closing))
        for request_id, calls in calls_of.items():
            for number, later in enumerate(calls, start=1):
                its_own = debits.get(later["number"])
                is_early = call["ended"] < later["started"] < until and number > before[request_id]
                if is_early and its_own is not None and _domain(evidence, its_own) == domain:
                    early = f"{until - later['started']:.3f} s before the Retry-After of {debit['request_id']} was over"
                    yield Violation("unexpected", request_id, f"called {early}")


def _debited_before(entry: Row, closing: Row) -> bool:
    return entry["debited_at"] is not None and entry["number"] < closing["number"]


def _limits(evidence: Evidence) -> Iterator[tuple[str, Unit, float]]:
    by_domain = {deployment.quota_domain: deployment.limits for deployment in evidence.deployments}
    for domain, limits in by_domain.items():
        if limits.requests_per_minute is not None:
            yield domain, "requests", limits.requests_per_minute
        if limits.tokens_per_minute is not None:
            yield domain, "tokens", limits.tokens_per_minute


def _domain(evidence: Evidence, entry: Row) -> str:
    by_deployment = {deployment.name: deployment.quota_domain for deployment in evidence.deployments}
    domain: str = entry["domain"] or by_deployment[entry["deployment"]]
    return domain


def _journal(evidence: Evidence) -> defaultdict[str, list[Row]]:
    """By quota domain, in the order in which the entries were written."""
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for entry in evidence.rows["journal"]:
        found[_domain(evidence, entry)].append(entry)
    return found


def _transactions(entries: list[Row]) -> list[list[Row]]:
    found: dict[int, list[Row]] = {}
    for entry in entries:
        found.setdefault(entry["transaction"], []).append(entry)
    return list(found.values())


def _debits(evidence: Evidence) -> dict[int, Row]:
    """The debit of each call, by the call's number: the last one of its request before it arrived."""
    by_request: defaultdict[str, list[Row]] = defaultdict(list)
    for entry in evidence.rows["journal"]:
        if entry["debited_at"] is not None and entry["request_id"] is not None:
            by_request[entry["request_id"]].append(entry)
    found = {}
    for request_id, calls in calls_by_request(evidence).items():
        for call in calls:
            until = call["started"] + CLOCK_SLACK_SECONDS
            before = [entry for entry in by_request[request_id] if entry["debited_at"].timestamp() <= until]
            if before:
                found[call["number"]] = before[-1]
    return found


def _arrivals(evidence: Evidence, debits: Mapping[int, Row], entries: Sequence[Row], unit: Unit) -> list[Arrival]:
    """The calls of one domain. What was debited for nobody's request was used up at once."""
    spent: defaultdict[tuple[str, int], int] = defaultdict(int)
    for entry in entries:
        spent[entry["request_id"], entry["attempt"]] += entry[unit]
    numbers = {entry["number"] for entry in entries}
    found = []
    for call in evidence.calls:
        debit = debits.get(call["number"])
        if debit is not None and debit["number"] in numbers:
            delay = call["started"] - debit["debited_at"].timestamp()
            cost = spent[debit["request_id"], debit["attempt"]]
            found.append(Arrival(call["started"], debit["number"], delay, cost))
    for entry in entries:
        if entry["debited_at"] is not None and entry["request_id"] is None:
            found.append(Arrival(entry["debited_at"].timestamp(), entry["number"], 0.0, entry[unit]))
    return found


CHECKS = (
    debits_of_a_domain_follow_each_other,
    each_bucket_keeps_its_limits,
    the_providers_log_keeps_the_limits,
    no_attempt_starts_in_a_closed_domain,
    each_retry_after_closes_its_domain,
)
