"""The turn under concurrency: two replicas accept, cancel, expire and end at once, and nobody is skipped or doubled."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import pytest

from services.gateway.records import Accept, Accepted, NewSession, Progress, Turn
from services.gateway.request_state import NEXT, State
from services.gateway.store import AccountStore, SessionStore, SweepStore, TurnStore
from shared.contracts.content import Outcome
from shared.contracts.results import RESULT_BY_STATUS
from shared.group_commit import GroupCommit
from shared.ids import new_id
from shared.postgres import Connection, Database
from tests.component.gateway.driver import PAST, Gateway, ending_of
from tests.support.guard import GUARD_SECONDS
from tests.support.planning import Listening, index_conditions

GRACE = timedelta(seconds=30)
CHECK_AFTER = timedelta(seconds=30)


@dataclass
class Replica:
    """One gateway's writes: its own pool and its own group commits."""

    database: Database
    turns: TurnStore = field(init=False)
    sweeps: SweepStore = field(init=False)

    def __post_init__(self) -> None:
        self.turns = TurnStore(self.database, session_queue_max=1000, check_after=CHECK_AFTER, grace=GRACE)
        self.sweeps = SweepStore(self.database, check_after=CHECK_AFTER, check_after_max=CHECK_AFTER, grace=GRACE)
        self.accepts = GroupCommit(
            "test_accepts", self.turns.insert_requests_unless_key_used, key=lambda accept: accept.session_id
        )


@pytest.fixture
async def replicas(database: Database, database_dsn: Callable[..., object]) -> AsyncIterator[list[Replica]]:
    other = Database(database._dsn, service="gateway-test", pool_max=5, acquire_timeout_seconds=GUARD_SECONDS)
    await other.start()
    yield [Replica(database), Replica(other)]
    await other.stop()


@dataclass
class House:
    """The sessions of one account, every dispatch in its order, and what is open."""

    replicas: list[Replica]
    account_id: str
    session_ids: list[str]
    dispatched: dict[str, list[Turn]] = field(default_factory=dict)
    open_ids: dict[str, Turn] = field(default_factory=dict)

    def note(self, turns: list[Turn] | tuple[Turn, ...]) -> None:
        for turn in turns:
            self.dispatched.setdefault(turn.session_id, []).append(turn)

    async def accept(self, replica: Replica, session_id: str, *, deadline_seconds: int = 600) -> None:
        outcome = await replica.accepts.submit(
            Accept(
                request_id=new_id("req"),
                session_id=session_id,
                account_id=self.account_id,
                model=None,
                settings_json="{}",
                input_json="[]",
                metadata_json="{}",
                idempotency_key=None,
                fingerprint=b"x",
                deadline_seconds=deadline_seconds,
            )
        )
        assert isinstance(outcome, Accepted)
        self.open_ids[outcome.turn.request_id] = outcome.turn
        if outcome.has_turn:
            self.note([outcome.turn])

    async def end(self, replica: Replica, turn: Turn, status: Outcome = "completed") -> None:
        shown = {"id": turn.request_id, "session_id": turn.session_id, "seq": turn.seq}
        ended = await replica.turns.update_requests_ended_if_open([ending_of(shown, turn.account_id, status)])
        self.note(ended.dispatched)
        self.open_ids.pop(turn.request_id, None)

    async def cancel(self, replica: Replica, turn: Turn) -> None:
        cancelled = await replica.turns.update_request_cancelled_if_open(turn.request_id, turn.account_id)
        if cancelled is not None and cancelled.abandoned is not None:
            await self.end(replica, turn, "cancelled")


async def make_house(replicas: list[Replica], sessions: int) -> House:
    database = replicas[0].database
    account = await AccountStore(database).insert_account(new_id("acct"), "tests")
    house = House(replicas, account.id, [new_id("ses") for _ in range(sessions)])
    for session_id in house.session_ids:
        await SessionStore(database).insert_session_unless_key_used(
            NewSession(session_id, account.id, None, "default", "{}", None, None)
        )
    return house


async def check(house: House) -> None:
    """At any moment: in each session whoever is open first has the turn, alone, and the counts are right."""
    rows = await house.replicas[0].database.fetch(
        """
        SELECT s.id, s.running, s.open_requests,
               count(r.id) FILTER (WHERE r.ended_at IS NULL)::integer AS open,
               array_remove(array_agg(CASE WHEN r.ended_at IS NULL AND r.dispatched_at IS NOT NULL THEN r.id END), NULL)
                   AS with_turn,
               count(r.id) FILTER (WHERE r.ended_at IS NULL AND r.dispatched_at IS NULL
                                     AND r.cancel_requested_at IS NULL AND r.abandoned_at IS NULL) AS waiting
        FROM sessions s LEFT JOIN requests r ON r.session_id = s.id GROUP BY s.id
        """
    )
    for row in rows:
        assert row["open"] == row["open_requests"]
        assert len(row["with_turn"]) <= 1
        if row["waiting"]:
            assert row["with_turn"] == [row["running"]], "somebody waits and nobody has the turn"
    for turns in house.dispatched.values():
        seqs = [turn.seq for turn in turns]
        assert seqs == sorted(set(seqs)), "skipped back or doubled"


@pytest.mark.parametrize("seed", range(8))
async def test_the_turn_is_never_lost_doubled_or_out_of_order(replicas: list[Replica], seed: int) -> None:
    chance = random.Random(seed)
    house = await make_house(replicas, sessions=3)
    for _ in range(15):
        actions = []
        for _ in range(chance.randint(2, 12)):
            replica, session_id = chance.choice(replicas), chance.choice(house.session_ids)
            running = [turns[-1] for turns in house.dispatched.values() if turns[-1].request_id in house.open_ids]
            match chance.choice(("accept", "accept", "end", "end", "end_twice", "cancel")):
                case "accept":
                    actions.append(house.accept(replica, session_id))
                case "end" if running:
                    actions.append(house.end(replica, chance.choice(running)))
                case "end_twice" if running:
                    turn = chance.choice(running)
                    actions += [house.end(one, turn) for one in replicas]
                case "cancel" if house.open_ids:
                    actions.append(house.cancel(replica, chance.choice(list(house.open_ids.values()))))
                case _:
                    actions.append(house.accept(replica, session_id))
        await asyncio.gather(*actions)
        await check(house)
    while running := [turns[-1] for turns in house.dispatched.values() if turns[-1].request_id in house.open_ids]:
        await asyncio.gather(*(house.end(chance.choice(replicas), turn) for turn in running))
        await check(house)
    assert house.open_ids == {}


async def test_accepts_of_two_replicas_to_one_session_get_every_place_once(replicas: list[Replica]) -> None:
    house = await make_house(replicas, sessions=1)
    await asyncio.gather(*(house.accept(replicas[n % 2], house.session_ids[0]) for n in range(60)))
    assert sorted(turn.seq for turn in house.open_ids.values()) == list(range(1, 61))
    assert len(house.dispatched[house.session_ids[0]]) == 1
    await check(house)


@pytest.mark.parametrize("present", sorted(NEXT))
async def test_the_database_makes_exactly_the_moves_of_the_table(replicas: list[Replica], present: State) -> None:
    house = await make_house(replicas, sessions=1)
    database, turns = house.replicas[0].database, house.replicas[0].turns
    for wanted in RESULT_BY_STATUS:
        await house.accept(replicas[0], house.session_ids[0])
        [turn] = house.open_ids.values()
        if present == "in_progress":
            await turns.update_requests_progressed_if_open([Progress(turn.request_id, 1, None, PAST)])
        elif present != "queued":
            await house.end(replicas[0], turn, next(outcome for outcome in RESULT_BY_STATUS if outcome == present))
        await house.end(replicas[1], turn, wanted)
        state = await database.fetchval("SELECT state FROM requests WHERE id = $1", turn.request_id)
        assert state == (wanted if wanted in NEXT[present] else present)


async def test_endings_marks_and_progress_of_the_same_requests_lock_them_in_one_order(replicas: list[Replica]) -> None:
    """In any other, two of these statements would wait for each other, and one be ended for it."""
    house = await make_house(replicas, sessions=60)
    chance = random.Random(5)
    for _ in range(20):
        await asyncio.gather(*(house.accept(replicas[0], session_id) for session_id in house.session_ids))
        turns = list(house.open_ids.values())
        house.open_ids.clear()
        shuffled = [chance.sample(turns, len(turns)) for _ in range(3)]
        endings = [
            ending_of(
                {"id": turn.request_id, "session_id": turn.session_id, "seq": turn.seq}, turn.account_id, "completed"
            )
            for turn in shuffled[0]
        ]
        progress = [Progress(turn.request_id, 1, None, PAST) for turn in shuffled[2]]
        await asyncio.gather(
            replicas[0].turns.update_requests_ended_if_open(endings),
            replicas[1].sweeps.update_requested_paid([turn.request_id for turn in shuffled[1]]),
            replicas[1].turns.update_requests_progressed_if_open(progress),
        )


async def test_rows_are_found_by_their_ids_even_when_planned_on_empty_tables(database: Database) -> None:
    listening = Listening()
    turns = TurnStore(cast("Database", listening), session_queue_max=1, check_after=CHECK_AFTER, grace=GRACE)
    await turns.insert_requests_unless_key_used([])
    await turns._end_alone([])
    await turns._end(cast("Connection", listening), [])
    wanted = [{"sessions_pkey", "requests_by_idempotency_key"}, {"sessions_pkey", "requests_pkey"}]
    for sql, indexes in zip(listening.statements, [*wanted, wanted[1]], strict=True):
        conditions = await index_conditions(database, sql)
        assert {index for index, _ in conditions} == indexes
        assert all(re.search(r"\bid\b|session_id", condition) for _, condition in conditions), conditions


async def test_a_command_says_the_settings_in_the_order_in_which_they_were_sent(gateway: Gateway) -> None:
    properties = {"zone": {"type": "string"}, "at": {"type": "string"}}
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": properties}}
    session_id = await gateway.new_session()
    listener = await gateway.bus.listen("session.requested")
    first, _second = [await gateway.send(session_id, tools=[tool]) for _ in range(2)]
    await listener.wait_for(1)
    await gateway.end(first)
    for incoming in await listener.wait_for(2):
        parameters = json.loads(incoming.body)["settings"]["tools"][0]["parameters"]
        assert list(parameters["properties"]) == ["zone", "at"]
