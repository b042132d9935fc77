"""The wiring of results: the one file that knows every concrete class."""

from __future__ import annotations

from services.results.config import Settings
from services.results.handlers import Handlers
from services.results.recorder import Recorder
from services.results.routes import Routes
from services.results.store.logs import LogStore
from services.results.store.results import ResultStore
from shared.contracts.gateway import SessionAbandoned
from shared.contracts.orchestrator import SessionEnded, SessionProgressed
from shared.http import HttpServer
from shared.messaging.broker import Broker
from shared.messaging.consumer import Consumer
from shared.messaging.parking import Parking
from shared.messaging.publisher import Publisher
from shared.postgres import Database
from shared.runtime import App

PROGRESS_INTERVAL_SECONDS = 0.05
"""A reader of deltas does not see the difference; a transaction for each would be the dearest part of them."""


def build(settings: Settings) -> App:
    database = Database(
        settings.database_url.get_secret_value(), service="results", pool_max=settings.database_pool_max
    )
    broker = Broker(settings.amqp_url.get_secret_value(), service="results")
    publisher = Publisher(broker)
    parking = Parking(database)
    logs, results = LogStore(database), ResultStore(database)
    handlers = Handlers(Recorder(database, logs, results), publisher, output_bytes_max=settings.output_bytes_max)
    endings = Consumer(
        broker,
        publisher,
        parking,
        "results.endings",
        {SessionEnded: handlers.session_ended, SessionAbandoned: handlers.session_abandoned},
    )
    progress = Consumer(
        broker,
        publisher,
        parking,
        "results.progress",
        {SessionProgressed: handlers.session_progressed},
        interval_seconds=PROGRESS_INTERVAL_SECONDS,
    )
    http = HttpServer(
        Routes(logs, results).app(settings.service_token.get_secret_value()),
        host=settings.http_host,
        port=settings.http_port,
        drain_seconds=settings.drain_seconds,
    )
    return App(
        name="results",
        database=database,
        resources=[broker, publisher, endings, progress, http],
        dependencies={"broker": lambda: broker.ready},
    )
