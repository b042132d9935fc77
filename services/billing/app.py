"""The wiring of billing: the one file that knows every concrete class."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from services.billing.config import Settings
from services.billing.deciding import Deciding
from services.billing.event_worker import EventWorker
from services.billing.handlers import Handlers
from services.billing.holding import Holding
from services.billing.policy import Policy, load_policy
from services.billing.purchasing import Purchasing
from services.billing.reconciler import Reconciler
from services.billing.routes.accounts import AccountRoutes
from services.billing.routes.requests import RequestRoutes
from services.billing.store import Stores, build_stores
from services.billing.store.facts import FactStore
from services.billing.stripe_client import StripeClient
from services.billing.sweeping import Sweeping
from services.billing.webhooks import Webhooks
from shared.clock import Clock, DatabaseClock
from shared.contracts.message import Message
from shared.contracts.results import RESULT_BY_STATUS
from shared.http import HttpServer, make_app, require_service_token
from shared.loops import FollowedClock, Periodic
from shared.messaging.broker import Broker
from shared.messaging.consumer import BatchHandler, Consumer
from shared.messaging.owed import OwedPublishes
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.postgres import Database
from shared.resource import Resource
from shared.runtime import App

BODY_BYTES_MAX = 1024 * 1024
EVENT_POLL_SECONDS = 1.0
EVENT_COUNT_SECONDS = 15.0
POLICY_SECONDS = 60.0
SETTLE_INTERVAL_SECONDS = 0.05
"""Nobody waits for a charge; endings that come closer together than this are settled by one statement."""


def build(settings: Settings) -> App:
    policy = load_policy(settings.plans_file, livemode=settings.livemode)
    database = Database(
        settings.database_url.get_secret_value(), service="billing", pool_max=settings.database_pool_max
    )
    clock = DatabaseClock(database.now)
    stores = build_stores(database)
    stripe = StripeClient(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base)
    broker = Broker(settings.amqp_url.get_secret_value(), service="billing")
    publisher = Publisher(broker)
    changes = OwedPublishes(
        "eligibility_changes",
        publisher,
        select_owed=stores.decisions.select_changes_owed,
        mark_published=stores.decisions.update_changes_published,
    )
    deciding = Deciding(database, stores.facts, stores.decisions, stores.checkouts, policy, clock)
    workers = event_workers(settings, database, stores, deciding, stripe, policy, clock, changes)

    def wake_workers() -> None:
        for worker in workers:
            worker.wake()

    sweeping = Sweeping(database, stores, deciding, clock, announce=changes.pay, on_stored=wake_workers)
    secrets = [secret.get_secret_value() for secret in settings.stripe_webhook_secrets]
    purchasing = Purchasing(database, stores, stripe, policy, clock, on_stored=wake_workers)
    policies = Policies(stores.facts, policy)
    routes = [
        *Webhooks(stores.events, secrets, clock, on_stored=wake_workers).routes(),
        *AccountRoutes(deciding, purchasing, stores.records, announce=changes.pay).routes(),
        *RequestRoutes(Holding(database, stores.holds, stores.decisions, policy, clock), stores.records).routes(),
    ]
    return App(
        name="billing",
        database=database,
        resources=[
            FollowedClock(clock),
            policies,
            stripe,
            broker,
            publisher,
            changes,
            Consumer(
                broker,
                publisher,
                Parking(database),
                "billing.results",
                endings(Handlers(stores.holds, clock)),
                interval_seconds=SETTLE_INTERVAL_SECONDS,
            ),
            *workers,
            *sweeps(settings, sweeping, Reconciler(stores.events, stores.facts, stripe, clock), policies),
            http_server(settings, routes),
        ],
        dependencies={"broker": lambda: broker.ready},
    )


def event_workers(
    settings: Settings,
    database: Database,
    stores: Stores,
    deciding: Deciding,
    stripe: StripeClient,
    policy: Policy,
    clock: Clock,
    changes: OwedPublishes,
) -> list[Periodic]:
    """Each takes one event at a time; woken by a webhook, and once a second for what another replica stored."""
    worker = EventWorker(
        database,
        stores.events,
        stores.facts,
        deciding,
        stripe,
        policy,
        clock,
        announce=changes.pay,
        attempts_max=settings.event_attempts_max,
        backoff_seconds_max=settings.event_backoff_seconds_max,
    )
    return [
        Periodic(f"stripe_events_{number}", worker.run_until_idle, EVENT_POLL_SECONDS)
        for number in range(settings.stripe_workers)
    ]


def sweeps(settings: Settings, sweeping: Sweeping, reconciler: Reconciler, policies: Policies) -> list[Periodic]:
    """What nobody asks for: time runs out, and webhooks get lost."""
    reconciling = Periodic("reconcile", reconciler.run, settings.reconcile_seconds)
    reconciling.wake()  # what was missed while nothing ran is found at the start
    return [
        reconciling,
        Periodic("decisions_due", sweeping.decide_due, settings.sweep_seconds),
        Periodic("holds_due", sweeping.expire_holds, settings.sweep_seconds),
        Periodic("policy", policies.decide_anew, POLICY_SECONDS),
        Periodic("event_counts", sweeping.count_events, EVENT_COUNT_SECONDS),
    ]


def endings(handlers: Handlers) -> dict[type[Message], BatchHandler[Any]]:
    """What is received, and by whom it is handled."""
    return dict.fromkeys(RESULT_BY_STATUS.values(), handlers.result_ended)


def http_server(settings: Settings, routes: list[web.RouteDef]) -> HttpServer:
    app = make_app(
        middlewares=[require_service_token(settings.service_token.get_secret_value())], body_bytes_max=BODY_BYTES_MAX
    )
    app.add_routes(routes)
    return HttpServer(app, host=settings.http_host, port=settings.http_port, drain_seconds=settings.drain_seconds)


class Policies(Resource):
    """Keeps the rules of this process with the decisions that they make."""

    def __init__(self, facts: FactStore, policy: Policy) -> None:
        self._facts = facts
        self._policy = policy

    async def start(self) -> None:
        await self._facts.upsert_policy_started(self._policy)
        await self.decide_anew()

    async def decide_anew(self) -> None:
        """During a rollout old replicas may have decided since; so this is repeated."""
        await self._facts.update_eligibilities_due_if_policy_is_newest(self._policy.version)
