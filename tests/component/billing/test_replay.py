"""The record explains itself: from facts, rules, usage and the instant each decision is made again."""

import json
import random
from datetime import datetime, timedelta

from pydantic import TypeAdapter

from services.billing.app import Policies
from services.billing.eligibility import AccountFacts, Ask, Credit, decide
from services.billing.policy import Policy
from shared.contracts.billing import Eligibility
from shared.postgres import Database, Record
from tests.component.billing.parts import Parts, build_parts, question, result
from tests.support.clock import FakeClock
from tests.unit.billing.facts import DAY, NOW, POLICY, WITH_FREE, line, subscription

FACTS = TypeAdapter(AccountFacts)
SEED = 20261123
STATUSES = ["active", "past_due", "unpaid", "trialing", "paused", "hibernating"]


async def remade(database: Database, row: Record) -> Eligibility:
    """The decision, made again from nothing but rows."""
    policy = await database.fetchval("SELECT body FROM policies WHERE version = $1", row["policy_version"])
    facts = await database.fetchval(
        "SELECT facts FROM fact_versions WHERE account_id = $1 AND fact_version = $2",
        row["account_id"],
        row["fact_version"],
    )
    inputs = json.loads(row["inputs"])
    usage = {datetime.fromisoformat(start): Credit(*counts) for start, counts in inputs["usage"].items()}
    return decide(
        FACTS.validate_json(facts) if facts is not None else AccountFacts(),
        Policy.model_validate_json(policy),
        row["decided_at"],
        usage,
        Ask(inputs["tokens"], inputs["model"], inputs["degraded"]),
    ).eligibility()


async def live_a_while(parts: Parts, clock: FakeClock, chance: random.Random) -> None:
    """Facts change, requests come and end, time passes."""
    asked = []
    for turn in range(60):
        account_id = f"acct_{chance.randrange(3)}"
        if turn % 4 == 0:
            fact = subscription(
                STATUSES[turn // 4 % len(STATUSES)],
                subscription_id=f"sub_{account_id}",
                customer_id=f"cus_{account_id}",
                lines=(line(chance.choice(["price_pro", "price_basic", "price_metered"])),),
                trial_end=NOW + 3 * DAY,
                past_due_since=clock.now() - timedelta(days=chance.randrange(5)),
                fetched_at=clock.now(),
                status_since=clock.now(),
            )
            await parts.learn(account_id, fact)
        batch = [
            question(
                tokens=chance.choice([1, 20, 90, 400]), account_id=account_id, model=chance.choice(["default", "x"])
            )
            for _ in range(chance.randrange(1, 4))
        ]
        await parts.hold(*batch)
        asked += batch
        if chance.random() < 0.7:
            done = chance.choice(asked)
            await parts.end(result(done.request_id, chance.randrange(200), account_id=done.account_id))
        await clock.advance(chance.choice([1, 600, 40_000]))


async def test_every_recorded_decision_is_made_again_from_what_was_recorded(
    database: Database, clock: FakeClock
) -> None:
    for policy in (POLICY, WITH_FREE):
        parts = build_parts(database, clock, policy)
        await parts.stores.facts.upsert_policy_started(policy)
        await live_a_while(parts, clock, random.Random(SEED))
    rows = await database.fetch("SELECT * FROM decisions WHERE eligibility -> 'reasons' ->> 0 <> 'hold_ended'")
    assert len(rows) > 150
    assert {row["decision"] for row in rows} == {"ALLOW", "ALLOW_GRACE", "DENY", "INDETERMINATE"}
    for row in rows:
        assert await remade(database, row) == Eligibility.model_validate_json(row["eligibility"]), dict(row)


async def test_the_books_balance_after_all_of_it(database: Database, clock: FakeClock) -> None:
    parts = build_parts(database, clock)
    await live_a_while(parts, clock, random.Random(SEED + 1))
    differing = await database.fetch(
        """
        SELECT c.account_id, c.period_start FROM credit_accounts c
        WHERE c.held <> (SELECT coalesce(sum(held_tokens), 0) FROM holds h
                         WHERE h.account_id = c.account_id AND h.period_start = c.period_start AND state = 'held')
           OR c.settled <> (SELECT coalesce(sum(tokens), 0) FROM ledger l
                            WHERE l.account_id = c.account_id AND l.period_start = c.period_start AND kind = 'charge')
           OR c.settled + c.held > c.granted
        """
    )
    assert differing == []
    mischarged = await database.fetchval(
        """
        SELECT count(*) FROM holds h WHERE state = 'settled' AND charged_tokens <>
            (SELECT coalesce(sum(tokens), 0) FROM ledger l WHERE l.request_id = h.request_id AND kind <> 'late')
        """
    )
    assert mischarged == 0


async def test_new_rules_decide_every_account_again_and_old_replicas_leave_it_to_new_ones(database: Database) -> None:
    # Of today: a plan's month that was over by the database's clock would be due by itself.
    clock = FakeClock(await database.now())
    old, new = build_parts(database, clock, POLICY), build_parts(database, clock, WITH_FREE)
    await Policies(old.stores.facts, POLICY).start()
    await old.learn("acct_1")
    assert await due(old) == []
    await Policies(new.stores.facts, WITH_FREE).start()
    assert await due(new) == ["acct_1"]
    [changed] = await new.learn("acct_1")
    assert changed.eligibility.reasons == ("free_plan",)
    await Policies(old.stores.facts, POLICY).decide_anew()
    assert await due(old) == []


async def due(parts: Parts) -> list[str]:
    """Accounts whose time has come by the database's own clock."""
    return await parts.stores.decisions.select_accounts_due(await parts.database.now(), limit=10)
