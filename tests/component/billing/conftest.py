"""Billing on a database and a virtual host of its own, beside the stand-in for Stripe."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from pydantic import SecretStr

from deploy.local.standins.starting import Standin, standin
from services.billing.app import build
from services.billing.config import Settings
from shared.postgres import Database
from tests.component.billing.driver import SECRETS, TOKEN, Billing
from tests.component.billing.parts import Parts, build_parts
from tests.support.bus import bus
from tests.support.clock import FakeClock
from tests.support.guard import GUARD_SECONDS
from tests.support.ports import free_port
from tests.support.standins import StripeControl
from tests.unit.billing.facts import NOW

FreshDatabase = Callable[[str], Awaitable[str]]
PLANS = Path(__file__).parents[3] / "deploy" / "local" / "plans.toml"


@pytest.fixture
async def database(database_dsn: FreshDatabase) -> AsyncIterator[Database]:
    database = Database(await database_dsn("billing"), service="billing-test", pool_max=10)
    await database.start()
    yield database
    await database.stop()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def parts(database: Database, clock: FakeClock) -> Parts:
    return build_parts(database, clock)


@pytest.fixture(scope="session")
def stripe_process() -> Iterator[Standin]:
    with standin("stripe") as process:
        yield process


@pytest.fixture
async def settings(database_dsn: FreshDatabase, amqp_url: str, stripe_process: Standin) -> Settings:
    settings = Settings(
        amqp_url=SecretStr(amqp_url),
        service_token=SecretStr(TOKEN),
        http_host="127.0.0.1",
        http_port=free_port(),
        database_url=SecretStr(await database_dsn("billing")),
        stripe_api_key=SecretStr("sk_test_x"),
        stripe_api_base=stripe_process.url,
        stripe_webhook_secrets=tuple(SecretStr(secret) for secret in SECRETS),
        plans_file=PLANS,
        reconcile_seconds=3600,
        sweep_seconds=0.2,
        event_attempts_max=5,
        drain_seconds=1,
    )
    return settings.model_copy(update={"event_backoff_seconds_max": 0.1})  # less than an operator may set


@pytest.fixture
def quick_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event whose next try is due is found at once."""
    monkeypatch.setattr("services.billing.app.EVENT_POLL_SECONDS", 0.05)


@pytest.fixture
async def billing(settings: Settings, stripe_process: Standin) -> AsyncIterator[Billing]:
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1.5 * GUARD_SECONDS))
        )
        control = StripeControl(http, stripe_process.control_url)
        await control.ask("POST", "/reset")
        url = f"http://127.0.0.1:{settings.http_port}"
        await control.ask("PUT", "/delivery", {"url": f"{url}/webhooks/stripe", "secret": SECRETS[0]})
        app = build(settings)
        for resource in (app.database, *app.resources):
            await resource.start()
            stack.push_async_callback(resource.stop)
        beside = await stack.enter_async_context(bus(settings.amqp_url.get_secret_value()))
        yield Billing(http, url, app.database, beside, control, stripe_process.url, app)
