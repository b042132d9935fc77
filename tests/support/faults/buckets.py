"""The journal of the buckets, and the arithmetic that says whether a limit was kept.

Triggers write down each debit, each settlement and each closing while its transaction holds the bucket's lock: so the
order of the entries is the order in which the bucket saw them, whatever clocks and delays there are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal

import asyncpg

_MICROSECONDS_PER_MINUTE = 60_000_000
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)

_JOURNAL = """
    CREATE TABLE bucket_journal (
        number       bigserial PRIMARY KEY,
        transaction  bigint NOT NULL DEFAULT txid_current(),
        domain       text,
        deployment   text,
        request_id   text,
        attempt      integer,
        debited_at   timestamptz,
        requests     integer NOT NULL DEFAULT 0,
        tokens       integer NOT NULL DEFAULT 0,
        closed_until timestamptz
    );

    CREATE FUNCTION journal_debit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO bucket_journal (deployment, request_id, attempt, debited_at, requests, tokens)
        VALUES (NEW.deployment, NEW.request_id, NEW.attempt, NEW.started_at, 1, NEW.tokens_reserved);
        RETURN NULL;
    END $$;
    CREATE TRIGGER journal_debit AFTER INSERT ON attempts FOR EACH ROW EXECUTE FUNCTION journal_debit();

    -- What was reserved and not used flows back; what a lost worker's call used up nobody knows.
    CREATE FUNCTION journal_settlement() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO bucket_journal (deployment, request_id, attempt, tokens)
        VALUES (NEW.deployment, NEW.request_id, NEW.attempt, CASE
            WHEN NEW.usage IS NOT NULL THEN (NEW.usage->>'input_tokens')::int + (NEW.usage->>'output_tokens')::int
            WHEN NEW.outcome = 'worker_lost' THEN NEW.tokens_reserved ELSE 0 END - NEW.tokens_reserved);
        RETURN NULL;
    END $$;
    CREATE TRIGGER journal_settlement AFTER UPDATE ON attempts FOR EACH ROW
        WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL) EXECUTE FUNCTION journal_settlement();

    CREATE FUNCTION journal_closing() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO bucket_journal (domain, closed_until) VALUES (NEW.name, NEW.closed_until);
        RETURN NULL;
    END $$;
    CREATE TRIGGER journal_closing AFTER UPDATE ON buckets FOR EACH ROW
        WHEN (OLD.closed_until IS DISTINCT FROM NEW.closed_until) EXECUTE FUNCTION journal_closing();
"""


async def keep_journal(dsn: str) -> None:
    """From now on, in the orchestrator's database."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_JOURNAL)
    finally:
        await connection.close()


@dataclass(frozen=True)
class Withdrawal:
    """What somebody else with the same key takes at once from a bucket that is full."""

    domain: str
    unit: Literal["requests", "tokens"]
    per_minute: int
    left: int


@asynccontextmanager
async def drawn(dsn: str, *withdrawals: Withdrawal) -> AsyncIterator[None]:
    """Keeps these buckets locked, so that calls queue up before them, and debits them at the end of the block.

    So the limits bind from the first call on, however slow the machine is, and every window that reaches back to
    these debits is tight.
    """
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            names = sorted(one.domain for one in withdrawals)
            query = "SELECT FROM buckets WHERE name = ANY($1) AND coalesce(requests, tokens) IS NULL FOR UPDATE"
            assert len(await connection.fetch(query, names)) == len(names), "a bucket is missing, or in use already"
            yield
            for one in withdrawals:
                await connection.execute(
                    f"""
                    WITH bucket AS (
                        UPDATE buckets SET refilled_at = clock_timestamp(), {one.unit} = $2 WHERE name = $1
                        RETURNING refilled_at
                    )
                    INSERT INTO bucket_journal (domain, debited_at, {one.unit})
                    SELECT $1, refilled_at, $3 FROM bucket
                    """,
                    one.domain,
                    one.left,
                    one.per_minute - one.left,
                )
    finally:
        await connection.close()


async def somebody_waits(dsn: str) -> bool:
    """Whether a transaction of this database waits for a lock."""
    connection = await asyncpg.connect(dsn)
    try:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return bool(await connection.fetchval(query))
    finally:
        await connection.close()


@dataclass(frozen=True)
class Step:
    """What one transaction did to a bucket: `debited` is the instant up to which the bucket was refilled for it."""

    debited: datetime | None
    spent: int


def steps(entries: Iterable[Mapping[str, Any]], unit: str) -> list[Step]:
    """The entries of one domain, those of a transaction together, in the order in which they had the lock."""
    spent: dict[int, int] = {}
    debited: dict[int, datetime] = {}
    for entry in entries:
        transaction = entry["transaction"]
        spent[transaction] = spent.get(transaction, 0) + entry[unit]
        if entry["debited_at"] is not None:
            debited[transaction] = max(entry["debited_at"], debited.get(transaction, entry["debited_at"]))
    return [Step(debited.get(transaction), amount) for transaction, amount in spent.items()]


def worst_excess(journal: Sequence[Step], per_minute: float) -> Fraction:
    """By how much the worst window from one debit to another exceeds capacity + rate x window; at most 0 where kept.

    Exact: instants are whole microseconds, and the bucket's own floating point cannot reach the next whole unit.
    """
    rate = Fraction(per_minute)
    spent, lowest, worst = Fraction(0), None, -rate
    for step in journal:
        if step.debited is None:
            spent += step.spent
            continue
        refilled = rate * microseconds(step.debited) / _MICROSECONDS_PER_MINUTE
        before = spent - refilled
        lowest = before if lowest is None else min(lowest, before)
        spent += step.spent
        worst = max(worst, spent - refilled - lowest)
    return worst - rate


def microseconds(instant: datetime) -> int:
    between = instant - _EPOCH
    return (between.days * 86_400 + between.seconds) * 1_000_000 + between.microseconds


@dataclass(frozen=True)
class Arrival:
    """A call as the provider's log has it, beside its debit."""

    at_seconds: float
    number: int
    """The place of its debit in the journal."""
    delay_seconds: float
    """From the debit to the arrival."""
    spent: int


def worst_arrivals(calls: Sequence[Arrival], given_back: Mapping[int, int], per_minute: float) -> float:
    """The same for the windows between two arrivals. Two things make such a window differ from one between debits:
    the calls took different times to arrive, which is measured in the same run; and calls that were in flight at its
    beginning gave something back (`given_back`, by the journal's place)."""
    if sum(call.spent for call in calls) <= per_minute:
        return sum(call.spent for call in calls) - per_minute
    delays = [call.delay_seconds for call in calls]
    rate, spread = per_minute / 60, max(delays) - min(delays)
    ordered = sorted(calls, key=lambda call: call.at_seconds)
    worst = -per_minute
    for place, first in enumerate(ordered):
        spent, number = 0, first.number
        for last in ordered[place:]:
            spent, number = spent + last.spent, min(number, last.number)
            window = last.at_seconds - first.at_seconds + spread
            worst = max(worst, spent - per_minute - rate * window - given_back[number])
    return worst


def flowing_back(entries: Iterable[Mapping[str, Any]], unit: str) -> dict[int, int]:
    """For each debit: what the calls that are in flight then will give back."""
    rows = list(entries)
    back = {_call(row): max(0, -row[unit]) for row in rows if row["debited_at"] is None and row["request_id"]}
    in_flight, found = 0, {}
    for row in rows:
        if row["debited_at"] is not None:
            found[row["number"]] = in_flight
            in_flight += back.get(_call(row), 0)
        elif row["request_id"]:
            in_flight -= back[_call(row)]
    return found


def _call(row: Mapping[str, Any]) -> tuple[str, int]:
    return row["request_id"], row["attempt"]
