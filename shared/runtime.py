"""One runtime for all four services: settings, signals, start in order, readiness, drain, stop in reverse."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import uvloop

from shared import failpoints, logs, operations, tracing
from shared.config import ServiceSettings, load, load_only
from shared.errors import ParleyError, Transient
from shared.http import HttpServer, ops_app
from shared.loops import Periodic
from shared.messaging.broker import is_cancelled
from shared.messaging.consumer import Consumer
from shared.messaging.parking import Parking
from shared.metrics import gauge
from shared.migrate import check, migrate, read_migrations
from shared.postgres import Database, DatabaseUnavailable
from shared.resource import Patience, Resource

log = logs.get_logger(__name__)

STOP_SECONDS_MAX: Final = 10.0
"""For all that follows DRAIN_SECONDS: a broker or database that does not answer must not keep the process."""
_STOP_SECONDS_MIN: Final = 0.2
_CANCEL_AGAIN_SECONDS: Final = 0.2
_DATABASE_RETRY_SECONDS: Final = 0.5
_DATABASE_RETRY_SECONDS_MAX: Final = 4.0
_MIGRATE_WAIT_SECONDS_MAX: Final = 3600.0
_COUNT_SECONDS: Final = 15.0
_YOUNG_OBJECTS_MAX: Final = 10_000
"""Between two searches for cycles among new objects. Most die with their call: Python's own 700 look at many a live one
again and again."""

_ready = gauge("ready", "1 while this process is ready.")


class HasDatabaseUrl(Protocol):
    """What the runtime needs of a service's settings beyond the common ones."""

    @property
    def database_url(self) -> Any: ...


SettingsType = TypeVar("SettingsType", bound=ServiceSettings)


@dataclass(frozen=True)
class App:
    """A service as its `build` wired it: resources in the order of starting. While a check does not hold the process is
    not ready; dependencies are told with it, and do not count: no replica has a better broker than another."""

    name: str
    database: Database
    resources: Sequence[Resource]
    checks: Mapping[str, Callable[[], bool]] = field(default_factory=dict)
    dependencies: Mapping[str, Callable[[], bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A subcommand of a service: its help, its arguments, and what it does with the settings."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Any, argparse.Namespace], Awaitable[int]]


def main(
    name: str,
    settings_class: type[SettingsType],
    build: Callable[[SettingsType], App],
    *,
    migrations: Path,
    commands: Mapping[str, Command] | None = None,
) -> None:
    """The entry point of a service: `serve` (the default), `migrate`, `parked`, and its own commands."""
    known = dict(commands or {})
    arguments = _parser(name, known).parse_args()
    settings = _load_settings(settings_class, arguments)
    logs.configure(name, settings.log_level)
    try:
        failpoints.arm(settings.failpoints)
        raise SystemExit(uvloop.run(_leaving_no_task(_dispatch(name, settings, build, migrations, known, arguments))))
    except ParleyError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    except BrokenPipeError:  # who reads our output, such as `| head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write("the other end of a pipe was closed\n")
        raise SystemExit(1) from None
    except Exception as error:  # a bare traceback would quote a row or a password
        log.error("process.failed", exc_info=error)
        raise SystemExit(1) from None


def _load_settings(settings_class: type[ServiceSettings], arguments: argparse.Namespace) -> Any:
    """Who mends a database or its parked messages needs no keys of providers to do it."""
    match arguments.command:
        case "migrate":
            return load_only(settings_class, "database_url", "log_level", "failpoints")
        case "parked":
            bus = ("amqp_url",) if arguments.action == "replay" else ()
            return load_only(settings_class, "database_url", "log_level", "failpoints", *bus)
        case _:
            return load(settings_class)


async def _leaving_no_task(work: Coroutine[Any, Any, int]) -> int:
    """The loop's own end cancels every task once and waits for ever; but while the broker's driver connects, it takes a
    cancellation for one more lost connection and tries again: the process would live on, neither ready nor dead."""
    try:
        return await work
    finally:
        while left := asyncio.all_tasks() - {asyncio.current_task()}:  # one that ends may begin another
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_CANCEL_AGAIN_SECONDS)


async def _dispatch(
    name: str,
    settings: Any,
    build: Callable[[Any], App],
    migrations: Path,
    commands: Mapping[str, Command],
    arguments: argparse.Namespace,
) -> int:
    match arguments.command:
        case None | "serve":
            if settings.otel_exporter_otlp_endpoint:
                tracing.configure(name)
            try:
                return await serve(build(settings), settings, migrations)
            finally:
                tracing.shutdown()
        case "migrate":
            return await _migrate(name, settings, migrations, check_only=arguments.check, wait_seconds=arguments.wait)
        case "parked":
            return await operations.run_parked(name, settings, arguments)
        case own:
            return await commands[own].run(settings, arguments)


async def serve(app: App, settings: ServiceSettings, migrations: Path) -> int:
    """Run until SIGTERM or SIGINT; then drain and stop. A second signal hurries that: nothing is waited for."""
    stopping, patience = asyncio.Event(), Patience()

    def stop_or_hurry() -> None:
        if stopping.is_set():
            patience.lose()
            for resource in app.resources:
                resource.hurry()
        stopping.set()

    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop_or_hurry)
    serving = False
    checks = {"serving": lambda: serving and not stopping.is_set(), **app.checks}
    ops = HttpServer(
        ops_app(checks, app.dependencies), host=settings.http_host, port=settings.ops_port, drain_seconds=1
    )
    started: list[Resource] = []
    try:
        await _start_one(ops, started)
        starting = asyncio.create_task(_start(app, migrations, started))
        if await _first(starting, stopping):
            _spare_collector()
            serving = True
            _ready.set(1)
            log.info("service.ready", name=app.name)
            await stopping.wait()
            _ready.set(0)
            await _drain(app, settings.drain_delay_seconds, patience)
    finally:
        all_stopped = await _stop(started, settings.drain_seconds)
    log.info("service.stopped", name=app.name)
    return 0 if all_stopped else 1


def _spare_collector() -> None:
    """What has been loaded and wired by now stays for the life of the process: the collector need not walk all of it
    each time, which stops everything for tens of milliseconds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS_MAX)


async def _drain(app: App, delay_seconds: float, patience: Patience) -> None:
    log.info("service.draining", name=app.name)
    for resource in app.resources:
        resource.enter_lame_duck()
    # Who has no listener has nobody to wait for.
    if any(isinstance(resource, HttpServer) for resource in app.resources):
        await patience.wait(asyncio.sleep(delay_seconds), delay_seconds)
    for resource in app.resources:
        resource.drain()


async def _stop(started: Sequence[Resource], drain_seconds: float) -> bool:
    """Stop in reverse order within the time budget; what does not end in time is left. Whether nothing failed."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + drain_seconds + STOP_SECONDS_MAX
    all_stopped = True
    for resource in reversed(started):
        try:
            async with asyncio.timeout_at(max(ends_at, loop.time() + _STOP_SECONDS_MIN)):
                await resource.stop()
        except (TimeoutError, asyncio.CancelledError):
            # Nobody cancels this task but the timeout; but a driver's dying connection may cancel who waits for it.
            log.warning("resource.left", resource=type(resource).__name__)
        except Exception as error:
            all_stopped = False
            log.error("resource.failed", resource=type(resource).__name__, exc_info=error)
    return all_stopped


async def _start(app: App, migrations: Path, started: list[Resource]) -> None:
    await _start_database(app)
    started.append(app.database)
    await check(app.database, read_migrations(app.name, migrations))
    # The listener is the last to start, and so the first to stop.
    queues = [resource.queue for resource in app.resources if isinstance(resource, Consumer)]
    counting = Periodic("parked", partial(Parking(app.database).count, queues), _COUNT_SECONDS)
    for resource in (counting, *app.resources):
        await _start_one(resource, started)


async def _start_one(resource: Resource, started: list[Resource]) -> None:
    """One that does not start ends the process, and whoever started that starts it again: a process that waited for
    ever would be neither ready nor dead."""
    try:
        async with asyncio.timeout(resource.start_seconds_max):
            await resource.start()
    except TimeoutError:
        raise Transient(f"{type(resource).__name__} did not start in time") from None
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise Transient(f"{type(resource).__name__} lost its connection while it started") from None
    started.append(resource)


async def _start_database(app: App) -> None:
    pause_seconds = _DATABASE_RETRY_SECONDS
    while True:
        try:
            return await app.database.start()
        except DatabaseUnavailable as error:
            log.warning(
                "database.unreachable",
                setting=f"{app.name.upper()}_DATABASE_URL",
                address=app.database.address,
                cause=type(error.__cause__).__name__,
                error=str(error),
                retry_seconds=pause_seconds,
            )
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, _DATABASE_RETRY_SECONDS_MAX)


async def _first(starting: asyncio.Task[None], stopping: asyncio.Event) -> bool:
    """Whether the start finished before a signal came; a failed start raises."""
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if starting.done():
        starting.result()
        return True
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    return False


async def _migrate(
    name: str, settings: HasDatabaseUrl, migrations: Path, *, check_only: bool, wait_seconds: float
) -> int:
    dsn = settings.database_url.get_secret_value()
    if check_only:
        database = Database(dsn, service=f"{name}-migrate", pool_max=2)
        await database.start()
        try:
            await check(database, read_migrations(name, migrations))
        finally:
            await database.stop()
        return 0
    applied = await migrate(dsn, name, migrations, wait_seconds=wait_seconds)
    sys.stdout.write(f"{name}: {', '.join(applied) if applied else 'nothing to migrate'}\n")
    return 0


def _wait_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= _MIGRATE_WAIT_SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"it must be from 0 to {_MIGRATE_WAIT_SECONDS_MAX:.0f}")
    return seconds


def _parser(name: str, commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m services.{name}", description=f"Parley's {name} service.")
    subparsers = parser.add_subparsers(dest="command")
    subparsers.add_parser("serve", help="run the service (the default)")
    migrating = subparsers.add_parser("migrate", help="bring this service's database to the newest schema")
    migrating.add_argument("--check", action="store_true", help="only say whether it is; exit 1 where it is not")
    migrating.add_argument(
        "--wait",
        type=_wait_seconds,
        default=0.0,
        metavar="SECONDS",
        help="how long to wait for a server, role or database that is not there yet",
    )
    operations.add_parked_arguments(subparsers.add_parser("parked", help="list, show, replay or drop parked messages"))
    for command_name, command in commands.items():
        command.add_arguments(subparsers.add_parser(command_name, help=command.help))
    return parser
