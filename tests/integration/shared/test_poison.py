"""Poison among a thousand good messages, in the real queues of the real services: a parked row for each, no pause, and
the good ones are handled as if the bad ones had never been there."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from services.billing.app import build as build_billing
from services.billing.config import Settings as BillingSettings
from services.gateway.app import build as build_gateway
from services.gateway.config import Settings as GatewaySettings
from services.orchestrator.app import build as build_orchestrator
from services.orchestrator.config import Settings as OrchestratorSettings
from services.results.app import build as build_results
from services.results.config import Settings as ResultsSettings
from shared.contracts.message import Message
from shared.contracts.results import ResultCompleted
from shared.ids import new_id
from shared.messaging.broker import Broker
from shared.messaging.consumer import Consumer
from shared.messaging.publisher import Publisher
from shared.postgres import Database
from shared.runtime import App
from tests.component.orchestrator.driver import command
from tests.support.bus import bus, eventually
from tests.support.counted import counted
from tests.support.guard import GUARD_SECONDS
from tests.support.ports import free_port
from tests.support.result_messages import ended, output_of

GOOD = 1000
BEYOND_BIGINT = 2**70
NOBODY = "http://127.0.0.1:1"
PLANS = Path(__file__).parents[3] / "deploy" / "local" / "plans.toml"


@dataclass(frozen=True)
class Case:
    """A queue, the service that reads it, a message for it, and what of that message the database refuses."""

    service: str
    queue: str
    start: Callable[[dict[str, Any]], App]
    good: Callable[[], Message]
    refused: Callable[[], Message]


def result(**changes: Any) -> ResultCompleted:
    return ResultCompleted.model_validate(
        {
            "request_id": new_id("req"),
            "account_id": "acct_1",
            "session_id": "ses_1",
            "seq": 1,
            "cursor": 1,
            "status": "completed",
            "usage": {"input_tokens": 3, "output_tokens": 4},
            "provider_called": True,
            "ended_at": "2026-11-01T12:00:00Z",
            "ended_by": "session.ended",
            **changes,
        }
    )


CASES = (
    Case(
        "orchestrator",
        "orchestrator.requests",
        lambda common: build_orchestrator(
            OrchestratorSettings(
                **common, billing_url=NOBODY, results_url=NOBODY, openai_api_key=SecretStr("sk-of-tests")
            )
        ),
        command,
        lambda: command(seq=BEYOND_BIGINT),
    ),
    Case(
        "results",
        "results.endings",
        lambda common: build_results(ResultsSettings(**common)),
        lambda: ended(new_id("req"), output_of("Hi.")),
        lambda: ended(new_id("req"), output_of("Hi."), seq=BEYOND_BIGINT),
    ),
    Case(
        "billing",
        "billing.results",
        lambda common: build_billing(
            BillingSettings(
                **common,
                stripe_api_key=SecretStr("sk_test_x"),
                stripe_api_base=NOBODY,
                stripe_webhook_secrets=(SecretStr("whsec_x"),),
                plans_file=PLANS,
            )
        ),
        result,
        lambda: result(usage={"input_tokens": BEYOND_BIGINT, "output_tokens": 0}),
    ),
    Case(
        "gateway",
        "gateway.results",
        lambda common: build_gateway(
            GatewaySettings(
                **common, billing_url=NOBODY, results_url=NOBODY, api_key_pepper=SecretStr("a-pepper-for-tests")
            )
        ),
        result,
        lambda: result(session_id="ses_\0"),
    ),
)


@dataclass
class Seen:
    """The subjects of every batch that a handler was given."""

    batches: list[list[str]] = field(default_factory=list)

    def through(self, handler: Callable[[Any], Awaitable[Sequence[Message]]]) -> Any:
        async def noted(messages: Sequence[Message]) -> Sequence[Message]:
            self.batches.append([message.subject for message in messages])
            return await handler(messages)

        return noted

    def watch(self, app: App, queue: str) -> None:
        (consumer,) = (
            resource for resource in app.resources if isinstance(resource, Consumer) and resource._queue.name == queue
        )
        consumer._handlers = {name: self.through(handler) for name, handler in consumer._handlers.items()}

    def times(self) -> Counter[str]:
        return Counter(subject for batch in self.batches for subject in batch)


@contextlib.asynccontextmanager
async def started(app: App) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for resource in (app.database, *app.resources):
            await resource.start()
            stack.push_async_callback(resource.stop)
        yield
        for resource in app.resources:
            resource.drain()


@contextlib.asynccontextmanager
async def a_publisher(amqp_url: str) -> AsyncIterator[Publisher]:
    """Declares all queues, too."""
    broker = Broker(amqp_url, service="test", settle_seconds=0)
    publisher = Publisher(broker)
    await broker.start()
    await publisher.start()
    yield publisher
    await publisher.stop()
    await broker.stop()


def verdicts(queue: str) -> Counter[str]:
    names = ("acked", "parked", "paused")
    found = Counter({name: int(counted("messages_handled", queue=queue, verdict=name)) for name in names})
    found["redelivered"] = int(counted("messages_redelivered", queue=queue))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.queue)
async def test_poison_among_a_thousand_good_messages_is_parked_and_holds_up_nobody(
    case: Case, database_dsn: Callable[[str], Awaitable[str]], amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A broker that is slow today is a reason to pause, too; here only the poison may be one.
    monkeypatch.setattr("shared.messaging.publisher._CONFIRM_TIMEOUT_SECONDS", GUARD_SECONDS)
    good = [case.good() for _ in range(GOOD)]
    undecodable, refused = case.good(), case.refused()
    async with a_publisher(amqp_url) as publisher, bus(amqp_url) as beside:
        await publisher.publish(*good[: GOOD // 3])
        await beside.send_raw(undecodable.type, b"no JSON", {"ce-id": undecodable.id})
        await publisher.publish(*good[GOOD // 3 : GOOD // 2], refused, *good[GOOD // 2 :])

        before, seen = verdicts(case.queue), Seen()
        app = case.start(
            {
                "amqp_url": SecretStr(amqp_url),
                "service_token": SecretStr("a-service-token-of-tests"),
                "http_host": "127.0.0.1",
                "http_port": free_port(),
                "database_url": SecretStr(await database_dsn(case.service)),
            }
        )
        seen.watch(app, case.queue)

        async def all_have_a_verdict() -> bool:
            return len(seen.times()) > GOOD and sum((verdicts(case.queue) - before).values()) >= GOOD + 2

        async with started(app):
            await eventually(all_have_a_verdict, seconds=4 * GUARD_SECONDS)
            assert await parked_reasons(app.database) == ["database_refused", "missing_attribute"]
        assert verdicts(case.queue) - before == Counter(acked=GOOD, parked=2)
        assert await beside.count(case.queue) == 0

    with_it = [batch for batch in seen.batches if refused.subject in batch]
    assert [len(batch) > 1 for batch in with_it] == [True, False], "once with its batch, and once alone"
    assert undecodable.subject not in seen.times()
    expected = Counter(message.subject for message in good) + Counter(with_it[0])
    assert seen.times() == expected + Counter(with_it[1]), "only the neighbours in that batch are handled once more"


async def parked_reasons(database: Database) -> list[str]:
    rows = await database.fetch("SELECT reason FROM parked_messages")
    return sorted(row["reason"].partition(":")[0] for row in rows)
