"""The wiring: the one file that knows every concrete class of the orchestrator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from services.orchestrator.admission import Admission
from services.orchestrator.claiming import Claiming, Schedule
from services.orchestrator.closing import Closing
from services.orchestrator.concluding import Concluding
from services.orchestrator.config import Settings, load_models, provider_keys
from services.orchestrator.handlers import Handlers
from services.orchestrator.intake import Intake
from services.orchestrator.leases import Leases
from services.orchestrator.outcome import AttemptLedger
from services.orchestrator.providers.base import Provider
from services.orchestrator.providers.openai import OpenAIProvider
from services.orchestrator.routing import Models, Routing
from services.orchestrator.runner import Runner
from services.orchestrator.runs import Runs
from services.orchestrator.starting import Starting
from services.orchestrator.store import AttemptStore, BucketStore, EndingStore, TaskStore, WorkerStore
from services.orchestrator.sweeping import Sweeping
from shared.clock import Clock, DatabaseClock
from shared.contracts.gateway import SessionCancelRequested, SessionRequested
from shared.contracts.message import Message
from shared.contracts.orchestrator import SessionProgressed
from shared.http_client import HttpClient, InternalApi
from shared.loops import FollowedClock, Periodic
from shared.messaging.broker import Broker
from shared.messaging.consumer import BatchHandler, Consumer
from shared.messaging.owed import OwedPublishes
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.postgres import Database
from shared.runtime import App

PEER_CONNECTIONS_MAX = 200
PROVIDER_IDLE_SECONDS = 30.0
"""A handshake with a provider is far: its connections are kept for longer than those to our own services."""
PROGRESS_INTERVAL_SECONDS = 0.05
"""Of what calls say while they run, between two packets: a reader does not see the difference, and what is over by then
need not be said."""
OVERDUE_SWEEP_SECONDS = 1.0
COUNT_SECONDS = 15.0
FORGET_SECONDS = 600.0


@dataclass(frozen=True)
class Stores:
    """All SQL of the service."""

    tasks: TaskStore
    attempts: AttemptStore
    buckets: BucketStore
    endings: EndingStore
    workers: WorkerStore


def build(settings: Settings) -> App:
    database = Database(
        settings.database_url.get_secret_value(), service="orchestrator", pool_max=settings.database_pool_max
    )
    stores = Stores(
        TaskStore(database), AttemptStore(database), BucketStore(database), EndingStore(database), WorkerStore(database)
    )
    clock = DatabaseClock(database.now)
    peers = HttpClient(connections_max=PEER_CONNECTIONS_MAX)
    providers = HttpClient(connections_max=settings.slots, idle_seconds=PROVIDER_IDLE_SECONDS)
    broker = Broker(settings.amqp_url.get_secret_value(), service="orchestrator")
    publisher = Publisher(broker, interval_seconds=PROGRESS_INTERVAL_SECONDS)
    owed = OwedPublishes(
        "session_endings",
        publisher,
        select_owed=stores.endings.select_endings_owed,
        mark_published=stores.endings.update_endings_published,
        replace_refused=stores.endings.update_endings_too_large_if_owed,
    )
    leases, claiming, handlers, closing = build_work(
        settings, database, stores, peers, providers, publisher, owed, clock
    )
    sweeping = Sweeping(stores.tasks, stores.endings, stores.workers, retention_days=settings.retention_days)
    return App(
        name="orchestrator",
        database=database,
        resources=[
            FollowedClock(clock),
            peers,
            providers,
            broker,
            publisher,
            owed,
            leases,
            claiming,
            Periodic("overdue", closing.sweep_overdue, OVERDUE_SWEEP_SECONDS),
            Periodic("counts", sweeping.count, COUNT_SECONDS),
            Periodic("forget", sweeping.forget, FORGET_SECONDS),
            *consumers(broker, publisher, Parking(database), handlers, claiming.gate),
        ],
        checks={"lease": lambda: leases.held},
        dependencies={"broker": lambda: broker.ready},
    )


def build_work(
    settings: Settings,
    database: Database,
    stores: Stores,
    peers: HttpClient,
    providers: HttpClient,
    publisher: Publisher,
    owed: OwedPublishes,
    clock: Clock,
) -> tuple[Leases, Claiming, Handlers, Closing]:
    """Everything between a command's arrival and its ending."""
    models = load_models(settings)
    routing, schedule, runs = Routing(models), Schedule(clock), Runs(settings.slots)
    admission = build_admission(settings, peers, routing, clock)
    starting = Starting(database, stores.attempts, stores.buckets, routing, clock)
    runner = Runner(
        admission,
        starting,
        Concluding(stores.attempts, routing, owed, publisher.send, schedule.expect, clock),
        build_providers(settings, models, providers, clock),
        routing,
        AttemptLedger(routing, clock),
        stores.buckets,
        runs,
        partial(publisher.send_made, SessionProgressed.type),
        clock,
        attempts_max=settings.attempts_max,
    )
    leases = Leases(
        stores.workers,
        stores.buckets,
        routing,
        runs,
        clock,
        lease_seconds=settings.lease_seconds,
        drain_seconds=settings.drain_seconds,
    )
    closing = Closing(database, stores.tasks, stores.endings, runs, owed, clock)
    intake = Intake(
        database,
        stores.tasks,
        admission,
        starting,
        closing,
        routing,
        runs,
        runner,
        leases,
        schedule,
        owed,
        publisher.send,
        clock,
    )
    claiming = Claiming(stores.tasks, leases, runs, schedule, runner.start, clock)
    return leases, claiming, Handlers(intake, closing), closing


def build_admission(settings: Settings, client: HttpClient, routing: Routing, clock: Clock) -> Admission:
    token = settings.service_token.get_secret_value()
    return Admission(
        InternalApi(client, settings.billing_url, token, peer="billing"),
        InternalApi(client, settings.results_url, token, peer="results"),
        routing,
        clock,
    )


def build_providers(settings: Settings, models: Models, client: HttpClient, clock: Clock) -> dict[str, Provider]:
    openai = OpenAIProvider(
        client,
        clock,
        base_url=settings.openai_base_url,
        keys=provider_keys(settings, models),
        bounds=settings.call_bounds,
    )
    return {"openai": openai}


def consumers(
    broker: Broker, publisher: Publisher, parking: Parking, handlers: Handlers, gate: Callable[[], Awaitable[None]]
) -> list[Consumer]:
    """What is received, and by whom it is handled."""
    cancels: dict[type[Message], BatchHandler[Any]] = {SessionCancelRequested: handlers.session_cancel_requested}
    requests: dict[type[Message], BatchHandler[Any]] = {SessionRequested: handlers.session_requested}
    return [
        Consumer(broker, publisher, parking, "orchestrator.cancels", cancels),
        Consumer(broker, publisher, parking, "orchestrator.requests", requests, gate=gate),
    ]
