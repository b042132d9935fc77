"""The operator's command for parked messages: list, show, replay, drop."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from shared.messaging.broker import Broker
from shared.messaging.parking import Parking
from shared.messaging.replay import replay
from shared.postgres import Database

_PAGE = 200


def add_parked_arguments(parser: argparse.ArgumentParser) -> None:
    """`list`, `show ID`, `replay ID...|--all`, `drop ID...`."""
    parser.add_argument("action", choices=("list", "show", "replay", "drop"))
    parser.add_argument("ids", nargs="*", type=_parked_id, help="ids as `list` prints them")
    parser.add_argument("--all", action="store_true", help="with replay: everything that is parked")
    parser.add_argument(
        "--body",
        action="store_true",
        help="with show: print the body and every header too; they may hold user content",
    )


def _parked_id(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no id of a parked message")
    return int(text)


async def run_parked(name: str, settings: Any, arguments: argparse.Namespace) -> int:
    """Exit status 0, 1 where an id is unknown, or 2 where none is given."""
    if arguments.action != "list" and not arguments.ids and not (arguments.action == "replay" and arguments.all):
        or_all = ", or --all" if arguments.action == "replay" else ""
        sys.stderr.write(f"parked {arguments.action} needs the ids of messages as `parked list` prints them{or_all}.\n")
        return 2
    database = Database(settings.database_url.get_secret_value(), service=f"{name}-parked", pool_max=2)
    await database.start()
    try:
        parking = Parking(database)
        match arguments.action:
            case "list":
                return await _list(parking)
            case "show":
                return await _show(parking, arguments.ids, with_body=arguments.body)
            case "replay":
                return await _replay(parking, settings, name, arguments)
            case _:
                return _report([(parked_id, await parking.delete(parked_id)) for parked_id in arguments.ids], "dropped")
    finally:
        await database.stop()


async def _list(parking: Parking) -> int:
    after_id = 0
    if not await parking.select_page(limit=1):
        # Not a line of the list, which programs read.
        sys.stderr.write("There are no parked messages.\n")
    while page := await parking.select_page(after_id=after_id, limit=_PAGE):
        for parked in page:
            sys.stdout.write(json.dumps(asdict(parked), default=str) + "\n")
        after_id = page[-1].id
    return 0


async def _show(parking: Parking, ids: list[int], *, with_body: bool) -> int:
    status = 0
    for parked_id in ids:
        row = await parking.select_for_replay(parked_id)
        if row is None:
            status = 1
            sys.stderr.write(f"There is no parked message {parked_id}.\n")
            continue
        headers = json.loads(row["headers"])
        # The attributes are known to hold no content; of other headers, as of the body, nobody knows.
        shown = headers if with_body else {name: headers[name] for name in headers if name.startswith("ce-")}
        sys.stdout.write(json.dumps({"id": parked_id, "queue": row["queue"], **shown}) + "\n")
        if with_body:
            sys.stdout.write(row["body"].decode(errors="replace") + "\n")
    return status


async def _replay(parking: Parking, settings: Any, name: str, arguments: argparse.Namespace) -> int:
    ids: list[int] = arguments.ids
    if arguments.all:
        ids = [parked.id for parked in await parking.select_page(limit=100_000)]
        if not ids:
            sys.stderr.write("There are no parked messages.\n")
            return 0
    broker = Broker(settings.amqp_url.get_secret_value(), service=f"{name}-parked", settle_seconds=0)
    await broker.start()
    try:
        return _report([(parked_id, await replay(parking, broker, parked_id)) for parked_id in ids], "replayed")
    finally:
        await broker.stop()


def _report(outcomes: list[tuple[int, bool]], verb: str) -> int:
    for parked_id, known in outcomes:
        sys.stdout.write(f"{parked_id}: {verb}\n" if known else f"There is no parked message {parked_id}.\n")
    return 0 if all(known for _, known in outcomes) else 1
