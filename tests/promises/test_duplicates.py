"""P11: the same message or key twice changes nothing the second time, one after the other or all at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
from aio_pika.abc import AbstractIncomingMessage

from deploy.local.stack import Stack
from shared.messaging.topology import ENDINGS
from tests.promises.endpoints import ANSWER_DIFFERS, CASES, MAKE_ANOTHER, Answer, Caller, caller_of
from tests.promises.evidence import COPY, Evidence, Rows, changed, gather_evidence, growth, parsed
from tests.promises.walks import Walk, walk_through
from tests.promises.wiring import changing_endpoints, received
from tests.support.bus import bus
from tests.support.standins import LlmControl, StripeControl

COPIES: Final = 8
SEED: Final = 20261123

# What a request leaves behind, and the columns that must not depend on how often anything was said.
LEFT_BEHIND: Final = {
    "gateway.requests": ("state", "seq"),
    "gateway.sessions": ("next_seq", "open_requests"),
    "orchestrator.tasks": ("outcome", "attempts", "workers_lost"),
    "orchestrator.attempts": ("attempt", "outcome"),
    "billing.decisions": ("decision",),
    "billing.holds": ("state", "reason", "charged_tokens"),
    "billing.ledger": ("kind", "tokens", "reason"),
    "results.results": ("status", "ended_by"),
    "results.late_proposals": ("status",),
}


async def test_every_message_said_again_changes_nothing_and_is_answered_alike(
    stack: Stack, http: aiohttp.ClientSession, llm: LlmControl, stripe: StripeControl
) -> None:
    async with gather_evidence(stack, http) as evidence:
        await walk_through(stack, http, llm, stripe)
        await evidence.quiet()
        originals = list(evidence.said)
        assert {incoming.routing_key for incoming in originals} >= received(stack), "no message for some handler"
        rows, answers = await evidence.rows(), evidence.said_ids("session.ended", *ENDINGS)
        for routing_key in sorted({str(incoming.routing_key) for incoming in originals}):
            again = [incoming for incoming in originals if incoming.routing_key == routing_key]
            assert await answers_to(evidence, again) == expected_answers(evidence, routing_key, again), routing_key
            assert changed(rows, await evidence.rows()) == {}, routing_key
        at_once = originals * COPIES
        random.Random(SEED).shuffle(at_once)
        assert await answers_to(evidence, at_once) == answers
        assert changed(rows, await evidence.rows()) == {}


async def test_copies_that_race_the_first_leave_what_one_alone_leaves(
    stack: Stack, http: aiohttp.ClientSession, llm: LlmControl, stripe: StripeControl
) -> None:
    left = []
    async with gather_evidence(stack, http) as evidence:
        for copies in (0, COPIES):
            async with echo(stack, copies):
                walk = await walk_through(stack, http, llm, stripe)
                await evidence.quiet()
            rows = await evidence.rows()
            left.append(left_behind(rows, walk))
    assert left[0] == left[1]


async def test_every_endpoint_called_again_changes_nothing(
    stack: Stack, http: aiohttp.ClientSession, llm: LlmControl
) -> None:
    assert changing_endpoints(stack) == CASES.keys() | MAKE_ANOTHER
    async with gather_evidence(stack, http) as evidence:
        caller = await caller_of(stack, http, llm)
        calls = {name: await prepare(caller) for name, prepare in CASES.items()}
        before = await settled(evidence, caller, running=1)
        first = {name: await call() for name, call in calls.items()}
        once = await settled(evidence, caller)
        said = len(evidence.said)
        for name, call in calls.items():
            assert_alike(name, first[name], await call())
        assert changed(once, await settled(evidence, caller)) == {}
        assert evidence.said[said:] == []

        calls = {name: await prepare(caller) for name, prepare in CASES.items()}
        prepared = await settled(evidence, caller, running=1)
        together = await asyncio.gather(*(call() for call in calls.values() for _ in range(COPIES)))
        many = await settled(evidence, caller)
        for place, name in enumerate(CASES):
            answers = together[place * COPIES : (place + 1) * COPIES]
            for answer in answers:
                assert_alike(name, answers[0], answer)
        assert growth(prepared, many) == growth(before, once)


async def answers_to(evidence: Evidence, copies: list[AbstractIncomingMessage]) -> set[str]:
    """The ids that are said once these were said again; hints may be among them and are not counted."""
    since = len(evidence.said)
    await asyncio.gather(*(evidence.say_again(incoming) for incoming in copies))
    await evidence.quiet()
    others = {incoming.routing_key for incoming in evidence.said[since:]} - {"session.ended", *ENDINGS}
    assert others <= {"result.updated", "requests.moved"}, "more than a hint is said again"
    return evidence.said_ids("session.ended", *ENDINGS, since=since)


def expected_answers(evidence: Evidence, routing_key: str, said: list[AbstractIncomingMessage]) -> set[str]:
    """A command is answered with the stored ending, an ending with the stored result; nothing else is answered."""
    commands, endings = ("session.requested", "session.cancel_requested"), ("session.ended", "session.abandoned")
    answering = [*ENDINGS] if routing_key in (*commands, *endings) else []
    answering += ["session.ended"] if routing_key in commands else []
    subjects = {incoming.headers["ce-subject"] for incoming in said}
    return {
        str(incoming.headers["ce-id"])
        for incoming in evidence.said
        if incoming.routing_key in answering and incoming.headers["ce-subject"] in subjects
    }


async def settled(evidence: Evidence, caller: Caller, *, running: int = 0) -> Rows:
    """The rows once all is quiet and every charge was read: the gateway asks for it when it is first looked for."""
    await evidence.quiet(running=running)
    for row in parsed(await evidence.rows(), "gateway.requests"):
        if row["account_id"] == caller.account.id and row["ended_at"] is not None and row["charge"] is None:
            await caller.parley.wait_charged(row["id"])
    return await evidence.rows()


def assert_alike(name: str, first: Answer, again: Answer) -> None:
    """The same thing is answered; how far it has come meanwhile may differ."""
    assert first[0] < 500, (name, first)
    assert again[0] < 500, (name, again)
    if name not in ANSWER_DIFFERS:
        assert (again[0], identity(again[1])) == (first[0], identity(first[1])), name


def identity(body: Any) -> Any:
    return body["id"] if isinstance(body, dict) and "id" in body else body


@asynccontextmanager
async def echo(stack: Stack, copies: int) -> AsyncIterator[None]:
    """Says everything again the moment it is first said, so that the copies race the first."""
    seen: set[str] = set()
    async with bus(stack.urls["AMQP_URL"]) as beside:

        async def repeat(incoming: AbstractIncomingMessage) -> None:
            ce_id = str(incoming.headers["ce-id"])
            if COPY in incoming.headers or ce_id in seen:
                return
            seen.add(ce_id)
            for _ in range(copies):
                headers = {**incoming.headers, COPY: 1}
                await beside.send_raw(str(incoming.routing_key), incoming.body, headers, incoming.content_type)

        queue = await beside.channel.declare_queue(exclusive=True)
        await queue.bind("parley", "#")
        await queue.consume(repeat, no_ack=True)
        yield


def left_behind(rows: Rows, walk: Walk) -> dict[str, Counter[tuple[str, ...]]]:
    """How often each table has a row with these values about each request of the walk, by the request's name."""
    names = {request_id: name for name, request_id in walk.requests.items()}
    left = {}
    for table, columns in LEFT_BEHIND.items():
        counts: Counter[tuple[str, ...]] = Counter()
        for row in parsed(rows, table):
            # Decisions about the account alone follow Stripe's events, of which several may be looked at in one go.
            name = names.get(str(row.get("request_id") or row.get("id")))
            if table == "gateway.sessions" and row["account_id"] == walk.account.id:
                name = "session"
            if name is not None:
                counts[(name, *(str(row[column]) for column in columns))] += 1
        left[table] = counts
    accounts = [row for row in parsed(rows, "billing.credit_accounts") if row["account_id"] == walk.account.id]
    left["billing.credit_accounts"] = Counter(
        (str(row["settled"]), str(row["held"]), str(row["requests_charged"])) for row in accounts
    )
    return left
