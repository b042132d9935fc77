"""Holds over a real database: one debit, one answer, never more than the grant."""

import asyncio
from dataclasses import replace

import pytest

from services.billing.eligibility import Ask, Decision
from services.billing.reasons import Reason
from services.billing.store.decisions import RecordedDecision
from services.billing.store.holds import DecidedHold
from shared.contracts.billing import HoldRequest
from shared.errors import Unprocessable
from shared.ids import new_id
from shared.postgres import Database, DatabaseRefused
from tests.component.billing.parts import ACCOUNT, Parts, build_parts, question, result
from tests.support.clock import FakeClock
from tests.unit.billing.facts import DAY, HOUR, NOW, PERIOD_END, POLICY, line, subscription


async def test_a_hold_reserves_what_was_asked_and_a_result_charges_what_was_used(parts: Parts) -> None:
    await parts.subscribe()
    asked = question(tokens=300)
    [reply] = await parts.hold(asked)
    assert (reply.eligibility.decision, reply.held_tokens, reply.eligibility.remaining) == ("ALLOW", 300, 1000)
    assert await parts.credit() == (1000, 0, 300)
    await parts.end(result(asked.request_id, 120))
    assert await parts.credit() == (1000, 120, 0)
    assert await parts.ledger(asked.request_id) == {"charge": 120}


async def test_the_same_question_many_times_debits_once_and_has_one_answer(
    database: Database, clock: FakeClock
) -> None:
    replicas = [build_parts(database, clock) for _ in range(3)]
    await replicas[0].subscribe()
    asked = question(tokens=400)
    answers = await asyncio.gather(*(parts.hold(asked, asked) for parts in replicas for _ in range(10)))
    assert len({reply.model_dump_json() for replies in answers for reply in replies}) == 1
    assert await replicas[0].credit() == (1000, 0, 400)
    assert await database.fetchval("SELECT count(*) FROM decisions WHERE request_id = $1", asked.request_id) == 1


async def test_holds_at_once_over_several_replicas_never_exceed_the_grant(database: Database, clock: FakeClock) -> None:
    replicas = [build_parts(database, clock) for _ in range(3)]
    await replicas[0].subscribe()
    asked = [question(tokens=30) for _ in range(90)]
    answers = await asyncio.gather(
        *(replicas[place % 3].hold(*asked[place * 3 : place * 3 + 3]) for place in range(30))
    )
    replies = [reply for batch in answers for reply in batch]
    allowed = [reply for reply in replies if reply.eligibility.decision == "ALLOW"]
    assert len(allowed) == 33, "1000 tokens hold 33 times 30"
    denied = [reply for reply in replies if reply.eligibility.decision == "DENY"]
    assert len(denied) == 57
    assert {reply.eligibility.reasons[0] for reply in denied} == {Reason.QUOTA_EXHAUSTED}
    assert await replicas[0].credit() == (1000, 0, 990)


async def test_one_batch_gives_each_what_those_before_it_leave(parts: Parts) -> None:
    await parts.subscribe()
    asked = sorted((question(tokens=tokens) for tokens in (700, 400, 300, 1)), key=lambda hold: hold.request_id)
    replies = await parts.hold(*asked)
    assert [reply.request_id for reply in replies] == [hold.request_id for hold in asked]
    left = 1000
    for hold, reply in zip(asked, replies, strict=True):
        assert reply.held_tokens == (hold.tokens if hold.tokens <= left else 0)
        left -= reply.held_tokens
    assert (await parts.credit())[2] == 1000 - left


async def test_accounts_in_one_batch_do_not_touch_each_other(parts: Parts) -> None:
    await parts.subscribe("acct_1")
    await parts.subscribe("acct_2", price="price_basic")
    first, second = question(tokens=500), question(tokens=500, account_id="acct_2")
    allowed, denied = await parts.hold(first, second)
    assert (allowed.eligibility.decision, denied.eligibility.decision) == ("ALLOW", "DENY")
    assert denied.eligibility.plan == "basic"
    assert await parts.credit("acct_1") == (1000, 0, 500)
    assert await parts.database.fetchval("SELECT count(*) FROM credit_accounts WHERE account_id = 'acct_2'") == 0


async def test_a_denial_is_kept_and_repeated_even_when_it_would_be_allowed_by_now(parts: Parts) -> None:
    asked = question()
    [denied] = await parts.hold(asked)
    assert (denied.eligibility.decision, denied.eligibility.reasons) == ("DENY", ("no_subscription",))
    await parts.subscribe()
    assert await parts.hold(asked) == [denied]
    [fresh] = await parts.hold(question())
    assert fresh.eligibility.decision == "ALLOW"


async def test_an_undecided_question_holds_nothing_and_is_decided_anew(parts: Parts) -> None:
    await parts.learn(ACCOUNT, subscription(lines=(line(end=None),)))
    asked = question()
    [unknown] = await parts.hold(asked)
    [again] = await parts.hold(asked)
    assert unknown.eligibility.decision == again.eligibility.decision == "INDETERMINATE"
    assert unknown.decision_id != again.decision_id, "each is recorded"
    await parts.learn(ACCOUNT, subscription())
    [decided] = await parts.hold(asked)
    assert (decided.eligibility.decision, decided.held_tokens) == ("ALLOW", 100)


async def test_an_unknown_status_holds_for_a_day_by_a_rule_that_the_record_names(parts: Parts) -> None:
    fact = subscription("hibernating", status_since=NOW, last_known_status="active")
    [changed] = await parts.learn(ACCOUNT, fact)
    assert changed.eligibility.decision == "INDETERMINATE"
    [reply] = await parts.hold(question())
    assert (reply.eligibility.decision, reply.eligibility.reasons) == ("ALLOW", ("unknown_status", "active"))
    assert reply.eligibility.valid_until == NOW + DAY


async def test_grace_permits_a_hold(parts: Parts) -> None:
    await parts.learn(ACCOUNT, subscription("past_due", past_due_since=NOW - DAY))
    [reply] = await parts.hold(question())
    assert (reply.eligibility.decision, reply.held_tokens) == ("ALLOW_GRACE", 100)


async def test_a_model_outside_the_plan_is_denied(parts: Parts) -> None:
    await parts.subscribe(price="price_basic")
    [reply] = await parts.hold(question(tokens=1, model="clever"))
    assert (reply.eligibility.decision, reply.eligibility.reasons[0], reply.eligibility.action_hint) == (
        "DENY",
        "model_not_in_plan",
        "upgrade",
    )


async def test_a_result_that_comes_twice_charges_once(parts: Parts) -> None:
    await parts.subscribe()
    asked = question(tokens=300)
    await parts.hold(asked)
    ending = result(asked.request_id, 120)
    await asyncio.gather(parts.end(ending), parts.end(ending), parts.end(ending, ending))
    await parts.end(ending)
    assert await parts.credit() == (1000, 120, 0)
    assert await parts.ledger(asked.request_id) == {"charge": 120}


async def test_what_exceeds_the_grant_becomes_a_debt(parts: Parts) -> None:
    await parts.subscribe()
    asked = question(tokens=900)
    await parts.hold(asked)
    await parts.end(result(asked.request_id, 1300))
    assert await parts.credit() == (1000, 1000, 0)
    assert await parts.ledger(asked.request_id) == {"charge": 1000, "debt": 300}
    charge = await parts.stores.records.select_charge(asked.request_id, ACCOUNT)
    assert charge is not None
    assert (charge.state, charge.tokens, charge.reason) == ("settled", 1300, "completed")


async def test_endings_of_one_batch_share_what_the_grant_has_left(parts: Parts) -> None:
    await parts.subscribe()
    first, second, third = sorted((question(tokens=300) for _ in range(3)), key=lambda hold: hold.request_id)
    await parts.hold(first, second, third)
    await parts.end(*(result(hold.request_id, 450) for hold in (third, first, second)))
    assert await parts.credit() == (1000, 1000, 0)
    assert await parts.ledger(first.request_id) == {"charge": 450}
    assert await parts.ledger(second.request_id) == {"charge": 450}
    assert await parts.ledger(third.request_id) == {"charge": 100, "debt": 350}


async def test_a_request_that_another_one_still_holds_for_keeps_its_reservation(parts: Parts) -> None:
    await parts.subscribe()
    running, ended = question(tokens=600), question(tokens=300)
    await parts.hold(running, ended)
    await parts.end(result(ended.request_id, 700))
    assert await parts.credit() == (1000, 400, 600), "what is reserved is not spent by somebody else"
    assert await parts.ledger(ended.request_id) == {"charge": 400, "debt": 300}


@pytest.mark.parametrize("status", ["failed", "refused", "cancelled"])
async def test_a_request_without_an_answer_costs_nothing(parts: Parts, status: str) -> None:
    await parts.subscribe()
    asked = question(tokens=300)
    await parts.hold(asked)
    ending = result(asked.request_id, None, status=status)  # type: ignore[arg-type]
    await parts.end(ending, ending)
    assert await parts.credit() == (1000, 0, 0)
    assert (await parts.state(asked.request_id), await parts.ledger(asked.request_id)) == ("released", {})
    charge = await parts.stores.records.select_charge(asked.request_id, ACCOUNT)
    assert charge is not None
    assert (charge.state, charge.tokens) == ("released", 0)


async def test_a_call_that_was_cancelled_costs_what_it_used(parts: Parts) -> None:
    await parts.subscribe()
    asked = question(tokens=300)
    await parts.hold(asked)
    await parts.end(result(asked.request_id, 40, status="cancelled"))
    assert await parts.credit() == (1000, 40, 0)


async def test_an_ending_that_nobody_asked_for_is_kept_and_a_late_question_is_denied(parts: Parts) -> None:
    await parts.subscribe()
    asked = question()
    await parts.end(result(asked.request_id, None, status="cancelled"))
    [first] = await parts.hold(asked)
    assert (first.eligibility.decision, first.eligibility.reasons, first.held_tokens) == ("DENY", ("hold_ended",), 0)
    assert await parts.hold(asked, asked) == [first, first]
    assert await parts.database.fetchval("SELECT count(*) FROM credit_accounts") == 0


async def test_a_charge_that_nobody_held_for_is_a_debt(parts: Parts) -> None:
    request_id = new_id("req")
    await parts.end(result(request_id, 70))
    await parts.end(result(request_id, 70))
    assert (await parts.state(request_id), await parts.ledger(request_id)) == ("settled", {"debt": 70})


async def test_a_question_and_an_ending_at_once_leave_one_story(database: Database, clock: FakeClock) -> None:
    parts = build_parts(database, clock)
    await parts.subscribe()
    for _ in range(20):
        asked = question(tokens=10)
        [[reply], _] = await asyncio.gather(parts.hold(asked), parts.end(result(asked.request_id, 5)))
        ledger = await parts.ledger(asked.request_id)
        if reply.eligibility.decision == "ALLOW":
            assert ledger == {"charge": 5}
        else:
            assert (reply.eligibility.reasons[0], ledger) == ("hold_ended", {"debt": 5})
    assert (await parts.credit())[2] == 0


async def test_a_hold_past_its_time_is_given_back_and_its_late_result_still_charged(
    parts: Parts, clock: FakeClock
) -> None:
    await parts.subscribe()
    due, later = question(tokens=300, expires_at=NOW + HOUR), question(tokens=200)
    await parts.hold(due, later)
    await clock.advance(3600)
    assert await parts.stores.holds.update_holds_expired_if_due(clock.now(), limit=10) == 1
    assert await parts.stores.holds.update_holds_expired_if_due(clock.now(), limit=10) == 0
    assert await parts.credit() == (1000, 0, 200)
    assert (await parts.state(due.request_id), await parts.state(later.request_id)) == ("expired", "held")
    assert await parts.stores.records.select_charge(due.request_id, ACCOUNT) is None
    await parts.end(result(due.request_id, 120))
    assert (await parts.state(due.request_id), await parts.credit()) == ("settled", (1000, 120, 200))
    assert await parts.ledger(due.request_id) == {"charge": 120}


async def test_an_expired_hold_whose_request_failed_is_told_as_free(parts: Parts, clock: FakeClock) -> None:
    await parts.subscribe()
    asked = question(expires_at=NOW + HOUR)
    await parts.hold(asked)
    await clock.advance(3600)
    await parts.stores.holds.update_holds_expired_if_due(clock.now(), limit=10)
    await parts.end(result(asked.request_id, None, status="failed"))
    charge = await parts.stores.records.select_charge(asked.request_id, ACCOUNT)
    assert charge is not None
    assert (charge.state, charge.tokens, await parts.state(asked.request_id)) == ("released", 0, "expired")


async def test_a_result_after_a_denial_is_recorded_as_late_and_not_charged(parts: Parts) -> None:
    asked = question()
    await parts.hold(asked)
    await parts.end(result(asked.request_id, 50))
    assert (await parts.state(asked.request_id), await parts.ledger(asked.request_id)) == ("released", {"late": 50})


async def test_a_hold_of_one_account_answers_and_charges_no_other(parts: Parts) -> None:
    await parts.subscribe("acct_1")
    await parts.subscribe("acct_2")
    mine = question(tokens=300)
    await parts.hold(mine)
    [foreign] = await parts.hold(question(mine.request_id, account_id="acct_2"))
    assert (foreign.eligibility.decision, foreign.eligibility.reasons) == ("DENY", ("account_mismatch",))
    with pytest.raises(Unprocessable):
        await parts.end(result(mine.request_id, 10, account_id="acct_2"))
    assert await parts.credit("acct_1") == (1000, 0, 300)
    assert await parts.stores.records.select_charge(mine.request_id, "acct_2") is None


async def test_what_remains_is_told_to_whoever_asks_and_announced_to_nobody(parts: Parts) -> None:
    await parts.subscribe()
    first, _ = await parts.deciding.answer(ACCOUNT)
    await parts.hold(question(tokens=400))
    second, changes = await parts.deciding.answer(ACCOUNT)
    assert (first.decision.remaining, second.decision.remaining, changes) == (1000, 600, [])
    assert await parts.learn(ACCOUNT) == []
    await parts.hold(question(tokens=600))
    exhausted, changes = await parts.deciding.answer(ACCOUNT)
    assert exhausted.decision.reasons[0] is Reason.QUOTA_EXHAUSTED
    assert [change.sequence for change in changes] == [first.sequence + 1]


async def test_a_renewal_begins_with_a_fresh_credit(parts: Parts) -> None:
    await parts.subscribe()
    first = question(tokens=900)
    await parts.hold(first)
    renewed = subscription(
        subscription_id="sub_acct_1_price_pro",
        customer_id="cus_acct_1_price_pro",
        lines=(line(start=PERIOD_END, end=PERIOD_END + 30 * DAY),),
    )
    await parts.learn(ACCOUNT, renewed)
    [reply] = await parts.hold(question(tokens=900))
    assert reply.eligibility.decision == "ALLOW"
    await parts.end(result(first.request_id, 850))
    rows = await parts.database.fetch("SELECT settled, held FROM credit_accounts ORDER BY period_start")
    assert [tuple(row) for row in rows] == [(850, 0), (0, 900)], "an old hold is charged to its own period"


async def test_a_smaller_plan_takes_back_nothing_and_a_larger_one_grants_more(parts: Parts) -> None:
    await parts.subscribe(price="price_pro")
    await parts.hold(question(tokens=400))
    basic = subscription(
        subscription_id="sub_acct_1_price_pro", customer_id="cus_acct_1_price_pro", lines=(line("price_basic"),)
    )
    await parts.learn(ACCOUNT, basic)
    [denied] = await parts.hold(question(tokens=1))
    assert (denied.eligibility.reasons[0], denied.eligibility.remaining) == ("quota_exhausted", 0)
    await parts.learn(ACCOUNT, subscription(subscription_id=basic.subscription_id, customer_id=basic.customer_id))
    [allowed] = await parts.hold(question(tokens=600))
    assert (allowed.eligibility.decision, await parts.credit()) == ("ALLOW", (1000, 0, 1000))


async def test_a_plan_without_a_quota_is_counted_and_never_exhausted(parts: Parts) -> None:
    await parts.subscribe(price="price_endless")
    asked = question(tokens=10_000_000)
    [reply] = await parts.hold(asked)
    assert (reply.eligibility.decision, reply.eligibility.remaining) == ("ALLOW", None)
    await parts.end(result(asked.request_id, 12_000_000))
    assert await parts.credit() == (None, 12_000_000, 0)
    assert await parts.ledger(asked.request_id) == {"charge": 12_000_000}


async def test_overage_holds_what_is_left_and_owes_the_rest(parts: Parts) -> None:
    await parts.subscribe(price="price_metered")
    asked = question(tokens=250)
    [reply] = await parts.hold(asked)
    assert (reply.eligibility.reasons[0], reply.held_tokens) == ("overage_permitted", 100)
    await parts.end(result(asked.request_id, 250))
    assert await parts.ledger(asked.request_id) == {"charge": 100, "debt": 150}


async def test_a_decision_made_from_older_facts_is_not_recorded(parts: Parts) -> None:
    await parts.subscribe()
    asked = question()
    facts = (await parts.stores.decisions.select_in_force([ACCOUNT]))[ACCOUNT]
    await parts.subscribe(status="unpaid")
    decided = decided_as(asked, Decision("DENY", (Reason.CANCELED,)), facts.fact_version)
    assert await parts.stores.holds.insert_holds_if_new_and_current([decided], now=NOW) == set()
    [reply] = await parts.hold(asked)
    assert (reply.eligibility.decision, reply.eligibility.reasons) == ("DENY", ("unpaid",))


async def test_a_permission_that_no_longer_fits_the_grant_is_not_recorded(parts: Parts) -> None:
    await parts.subscribe()
    await parts.hold(question(tokens=900))
    facts = (await parts.stores.decisions.select_in_force([ACCOUNT]))[ACCOUNT]
    permitted = (await parts.deciding.answer(ACCOUNT))[0].decision
    asked = question(tokens=200)
    decided = decided_as(asked, replace(permitted, held_tokens=200), facts.fact_version)
    assert await parts.stores.holds.insert_holds_if_new_and_current([decided], now=NOW) == set()
    assert await parts.credit() == (1000, 0, 900)


def decided_as(asked: HoldRequest, decision: Decision, fact_version: int) -> DecidedHold:
    """A decision that was made some time ago and is now to be recorded."""
    recorded = RecordedDecision(
        decision_id="dec_1",
        account_id=ACCOUNT,
        request_id=asked.request_id,
        decision=decision,
        policy_version=POLICY.version,
        fact_version=fact_version,
        usage={},
        asked=Ask(),
        decided_at=NOW,
    )
    return DecidedHold(asked.request_id, ACCOUNT, asked.model, asked.expires_at, recorded)


async def test_the_database_itself_refuses_more_than_the_grant(database: Database, parts: Parts) -> None:
    await parts.subscribe()
    await parts.hold(question(tokens=900))
    with pytest.raises(DatabaseRefused) as caught:
        await database.execute("UPDATE credit_accounts SET held = 1001")
    assert caught.value.constraint_name == "credit_within_grant"
