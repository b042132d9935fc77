"""The wiring of the gateway: the one file that knows every concrete class."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from services.gateway.account_load import AccountLoad
from services.gateway.admission import Admission
from services.gateway.authentication import Authenticator
from services.gateway.cancelling import Cancelling
from services.gateway.config import Settings
from services.gateway.dispatch import Outbox, Turns
from services.gateway.eligibility import EligibilityCheck
from services.gateway.handlers import Handlers
from services.gateway.healing import Healing
from services.gateway.models import read_model_names
from services.gateway.peers import Billing, Results
from services.gateway.progress import ProgressWriter
from services.gateway.request_reader import RequestReader, end_of, hand_over
from services.gateway.routes.call import Services
from services.gateway.routes.table import public_app
from services.gateway.sessions import Sessions
from services.gateway.store import AccountStore, RequestStore, SessionStore, SweepStore, TurnStore
from services.gateway.timeline import TimelineReader
from services.gateway.waiting import Hub
from shared.clock import DatabaseClock
from shared.contracts.billing import EligibilityChanged
from shared.contracts.gateway import RequestsMoved
from shared.contracts.message import Message
from shared.contracts.results import RESULT_BY_STATUS, ResultUpdated
from shared.http import HttpServer
from shared.http_client import HttpClient, InternalApi
from shared.loops import FollowedClock, Periodic
from shared.messaging.broker import Broker
from shared.messaging.consumer import BatchHandler, Consumer
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.messaging.wake import WakeQueue
from shared.postgres import Database
from shared.resource import Resource
from shared.runtime import App

CHECK_AFTER = timedelta(seconds=30)
CHECK_AFTER_MAX = timedelta(seconds=300)
CHARGE_SECONDS_MAX = 1.0
PURCHASE_SECONDS_MAX = 30.0
UPDATES_MAX = 10_000
HEALING_SECONDS = 1.0
REPAIR_SECONDS = 15.0
OVERDUE_SECONDS = 15.0


@dataclass(frozen=True)
class Stores:
    """The gateway's SQL over one database."""

    accounts: AccountStore
    sessions: SessionStore
    requests: RequestStore
    turns: TurnStore
    sweeps: SweepStore


def build(settings: Settings) -> App:
    database = Database(
        settings.database_url.get_secret_value(), service="gateway", pool_max=settings.database_pool_max
    )
    clock = DatabaseClock(database.now)
    broker = Broker(settings.amqp_url.get_secret_value(), service="gateway")
    publisher = Publisher(broker)
    client = HttpClient()
    stores = build_stores(database, settings)
    grace = timedelta(seconds=settings.grace_seconds)
    outbox = Outbox(publisher, stores.sweeps, grace)
    results = Results(
        InternalApi(client, settings.results_url, settings.service_token.get_secret_value(), peer="results")
    )
    snapshot_hub = Hub("snapshots", waiters_max=settings.waiters_max, bus_is_up=lambda: broker.ready, clock=clock)
    turns = Turns(stores.turns, outbox, partial(hand_over, snapshot_hub))
    log_hub = Hub(
        "logs",
        waiters_max=settings.waiters_max,
        bus_is_up=lambda: broker.ready,
        clock=clock,
        find_moved=results.logs_moved,
    )
    services = build_services(settings, stores, clock, client, results, outbox, snapshot_hub, log_hub)
    handlers = Handlers(turns, ProgressWriter(stores.turns, clock), stores.accounts, services.authenticator, outbox)
    healing = Healing(stores.sweeps, results, turns, outbox)
    return App(
        name="gateway",
        database=database,
        resources=[
            FollowedClock(clock),
            broker,
            publisher,
            client,
            snapshot_hub,
            log_hub,
            outbox.requested,
            outbox.cancels,
            outbox.abandons,
            wake_queue(broker, snapshot_hub, log_hub),
            *consumers(broker, publisher, Parking(database), handlers),
            Periodic("healing", healing.look_after_due, HEALING_SECONDS, clock=clock),
            Periodic("turn_repair", healing.repair_turns, REPAIR_SECONDS, clock=clock),
            Periodic("overdue", healing.measure_overdue, OVERDUE_SECONDS, clock=clock),
            HttpServer(
                public_app(services, input_bytes_max=settings.input_bytes_max),
                host=settings.http_host,
                port=settings.http_port,
                drain_seconds=settings.drain_seconds,
            ),
        ],
        dependencies={"broker": lambda: broker.ready},
    )


def build_stores(database: Database, settings: Settings) -> Stores:
    grace = timedelta(seconds=settings.grace_seconds)
    return Stores(
        accounts=AccountStore(database),
        sessions=SessionStore(database),
        requests=RequestStore(database),
        turns=TurnStore(database, session_queue_max=settings.session_queue_max, check_after=CHECK_AFTER, grace=grace),
        sweeps=SweepStore(database, check_after=CHECK_AFTER, check_after_max=CHECK_AFTER_MAX, grace=grace),
    )


def build_services(
    settings: Settings,
    stores: Stores,
    clock: DatabaseClock,
    client: HttpClient,
    results: Results,
    outbox: Outbox,
    snapshot_hub: Hub,
    log_hub: Hub,
) -> Services:
    """The use cases that the routes reach."""
    token, pepper = settings.service_token.get_secret_value(), settings.api_key_pepper.get_secret_value()
    billing = Billing(
        InternalApi(client, settings.billing_url, token, peer="billing"),
        charge_api=InternalApi(client, settings.billing_url, token, peer="billing", total_seconds=CHARGE_SECONDS_MAX),
        # Billing asks Stripe before it answers.
        purchase_api=InternalApi(
            client, settings.billing_url, token, peer="billing", total_seconds=PURCHASE_SECONDS_MAX
        ),
    )
    models = read_model_names(settings.models_file)
    eligibility = EligibilityCheck(billing, clock)
    admission = Admission(
        stores.turns,
        stores.requests,
        eligibility,
        AccountLoad(stores.requests, clock, open_requests_max=settings.account_queue_max),
        outbox,
        models=models,
        deadline_seconds=settings.deadline_seconds,
        input_bytes_max=settings.input_bytes_max,
    )
    return Services(
        authenticator=Authenticator(stores.accounts, pepper=pepper, clock=clock),
        accounts=stores.accounts,
        api_key_pepper=pepper,
        sessions=Sessions(stores.sessions, models=models),
        admission=admission,
        requests=stores.requests,
        reader=RequestReader(stores.requests, billing, snapshot_hub, clock),
        cancelling=Cancelling(stores.turns, outbox),
        timeline=TimelineReader(billing, results),
        billing=billing,
        results=results,
        log_hub=log_hub,
    )


def wake_queue(broker: Broker, snapshot_hub: Hub, log_hub: Hub) -> WakeQueue:
    """New log entries wake readers of the log; a moved request wakes everybody who waits for it."""

    def wake_both(moved: RequestsMoved) -> None:
        snapshot_hub.wake(moved.request_ids)
        if not moved.still_open:
            snapshot_hub.wake(map(end_of, moved.request_ids))
        log_hub.wake(moved.request_ids)

    def wake_all() -> None:
        snapshot_hub.wake_all()
        log_hub.wake_all()

    return WakeQueue(
        broker,
        "gateway.wake",
        {ResultUpdated: lambda updated: log_hub.wake([updated.request_id]), RequestsMoved: wake_both},
        on_reconnect=wake_all,
    )


def consumers(broker: Broker, publisher: Publisher, parking: Parking, handlers: Handlers) -> list[Resource]:
    """What is received, and by whom it is handled."""
    endings: dict[type[Message], BatchHandler[Any]] = dict.fromkeys(RESULT_BY_STATUS.values(), handlers.result_ended)
    updates: dict[type[Message], BatchHandler[Any]] = {ResultUpdated: handlers.result_updated}
    return [
        Consumer(broker, publisher, parking, "gateway.results", endings),
        # Its handler waits for the tick of its statements, so that a batch has to take all that a tick brings.
        Consumer(broker, publisher, parking, "gateway.updates", updates, batch_max=UPDATES_MAX),
        Consumer(broker, publisher, parking, "gateway.eligibility", {EligibilityChanged: handlers.eligibility_changed}),
    ]
