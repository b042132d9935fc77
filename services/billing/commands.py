"""What operators run: `reconcile`, `block`, `allow`, `lift`."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final, Literal

from services.billing.config import Settings
from services.billing.deciding import Deciding
from services.billing.eligibility import Overlay
from services.billing.event_worker import EventWorker
from services.billing.policy import load_policy
from services.billing.reconciler import Reconciler
from services.billing.store import Stores, build_stores
from services.billing.stripe_client import StripeClient
from shared.clock import DatabaseClock
from shared.contracts.billing import EligibilityChanged
from shared.ids import is_id, new_id
from shared.postgres import Database
from shared.runtime import Command


async def reconcile(settings: Settings, _arguments: argparse.Namespace) -> int:
    """Revive dead events, compare everything with Stripe, and work until nothing is due."""
    async with _opened(settings) as (database, stores, deciding, clock):
        stripe = StripeClient(settings.stripe_api_key.get_secret_value(), settings.stripe_api_base)
        await stripe.start()
        try:
            revived = await stores.events.update_events_revived()
            await Reconciler(stores.events, stores.facts, stripe, clock).run()
            worker = EventWorker(
                database,
                stores.events,
                stores.facts,
                deciding,
                stripe,
                load_policy(settings.plans_file, livemode=settings.livemode),
                clock,
                announce=_left_to_the_service,
                attempts_max=settings.event_attempts_max,
                backoff_seconds_max=settings.event_backoff_seconds_max,
            )
            await worker.run_until_idle()
        finally:
            await stripe.stop()
        counts = await stores.events.select_event_counts()
    waiting = counts.get("received", 0) + counts.get("failed", 0)
    sys.stdout.write(f"revived {revived}, waiting {waiting}, dead {counts.get('dead', 0)}\n")
    return 0


async def block(settings: Settings, arguments: argparse.Namespace) -> int:
    return await _overlay(settings, arguments, "block")


async def allow(settings: Settings, arguments: argparse.Namespace) -> int:
    return await _overlay(settings, arguments, "allow")


async def lift(settings: Settings, arguments: argparse.Namespace) -> int:
    """End every block and allow of the account."""
    async with _opened(settings) as (database, stores, deciding, _), database.transaction() as connection:
        count = await stores.facts.update_overlays_lifted(connection, arguments.account, actor=arguments.actor)
        changes = await deciding.refresh(connection, arguments.account) if count else []
    if count == 0:
        sys.stderr.write(f"{arguments.account} has no block and no allow to lift\n")
        return 1
    _tell(arguments.account, f"lifted {count}", changes)
    return 0


async def _overlay(settings: Settings, arguments: argparse.Namespace, kind: Literal["block", "allow"]) -> int:
    policy = load_policy(settings.plans_file, livemode=settings.livemode)
    plan: str | None = getattr(arguments, "plan", None)
    if plan is not None and plan not in policy.plans:
        sys.stderr.write(f"there is no plan {plan}; there are: {', '.join(sorted(policy.plans))}\n")
        return 2
    overlay = Overlay(kind, arguments.until, plan)
    async with _opened(settings) as (database, stores, deciding, _), database.transaction() as connection:
        known = await stores.facts.select_account_known(connection, arguments.account)
        if kind == "block" and not known:
            sys.stderr.write(f"billing has never heard of {arguments.account}: nothing was recorded\n")
            return 1
        await stores.facts.insert_overlay(
            connection,
            new_id("ovl"),
            arguments.account,
            overlay,
            reason=arguments.reason,
            actor=arguments.actor,
        )
        changes = await deciding.refresh(connection, arguments.account)
    _tell(arguments.account, f"{kind} recorded", changes)
    if not known:  # a new account may be permitted before it asks for anything
        sys.stderr.write(f"billing had never heard of {arguments.account} before: check the id unless it is new\n")
    return 0


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Database, Stores, Deciding, DatabaseClock]]:
    database = Database(settings.database_url.get_secret_value(), service="billing-command", pool_max=4)
    await database.start()
    try:
        clock = DatabaseClock(database.now)
        await clock.sample()
        stores = build_stores(database)
        policy = load_policy(settings.plans_file, livemode=settings.livemode)
        yield (
            database,
            stores,
            Deciding(database, stores.facts, stores.decisions, stores.checkouts, policy, clock),
            clock,
        )
    finally:
        await database.stop()


def _left_to_the_service(_changes: Sequence[EligibilityChanged]) -> None:
    """The row owes the publish; the service's sweep pays it within seconds."""


def _tell(account_id: str, what: str, changes: Sequence[EligibilityChanged]) -> None:
    now = changes[0].eligibility if changes else None
    outcome = f"now {now.decision} ({', '.join(now.reasons)})" if now is not None else "the decision is unchanged"
    sys.stdout.write(f"{account_id}: {what}, {outcome}\n")


def _instant(text: str) -> datetime:
    """RFC 3339; without an offset, UTC. It must be in the future."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no instant such as 2027-01-31T12:00:00Z") from None
    instant = parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)
    if instant <= datetime.now(UTC):
        raise argparse.ArgumentTypeError(f"{text} has passed")
    return instant


def _account_id(text: str) -> str:
    if not is_id("acct", text):
        raise argparse.ArgumentTypeError(f"{text} is no account's id such as acct_0192f3c4a1b27d3e8f90a1b2c3d4e5f6")
    return text


def _add_block_arguments(parser: argparse.ArgumentParser) -> None:
    _add_overlay_arguments(parser)
    parser.add_argument("--until", type=_instant, help="when the block ends; without it, when it is lifted")


def _add_allow_arguments(parser: argparse.ArgumentParser) -> None:
    _add_overlay_arguments(parser)
    parser.add_argument("--until", type=_instant, required=True, help="when the permission ends")
    parser.add_argument("--plan", help="the plan whose models and quota hold; without it that of the subscription")


def _add_overlay_arguments(parser: argparse.ArgumentParser) -> None:
    _add_account(parser)
    _add_actor(parser)
    parser.add_argument("--reason", required=True, help="why, for the record")


def _add_lift_arguments(parser: argparse.ArgumentParser) -> None:
    _add_account(parser)
    _add_actor(parser)


def _add_actor(parser: argparse.ArgumentParser) -> None:
    user = _user_name()
    otherwise = f"without it {user}, who runs the command" if user else "the user here has no name"
    parser.add_argument("--actor", default=user, required=user is None, help=f"who decided this; {otherwise}")


def _user_name() -> str | None:
    """None in a container, whose user has a number only."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _add_account(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("account", type=_account_id, help="the account's id")


def _add_nothing(_parser: argparse.ArgumentParser) -> None:
    """`reconcile` takes no arguments."""


COMMANDS: Final[Mapping[str, Command]] = {
    "reconcile": Command("compare with Stripe now, and give dead events another chance", _add_nothing, reconcile),
    "block": Command("deny an account whatever its subscription says", _add_block_arguments, block),
    "allow": Command("permit an account without a subscription, within its quota", _add_allow_arguments, allow),
    "lift": Command("end every block and allow of an account", _add_lift_arguments, lift),
}
