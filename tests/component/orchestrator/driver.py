"""What a test does with running orchestrators: send commands, hear endings, look into the database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from services.orchestrator.app import build
from services.orchestrator.config import Settings
from services.orchestrator.leases import Leases
from shared.contracts.content import CallSettings, MessageItem
from shared.contracts.gateway import SessionCancelRequested, SessionRequested
from shared.contracts.orchestrator import SessionEnded, SessionProgressed
from shared.ids import new_id
from shared.postgres import Database
from shared.resource import Resource
from shared.runtime import App
from tests.component.orchestrator.peers import Peers
from tests.support.bus import Bus, Listener, eventually
from tests.support.guard import GUARD_SECONDS
from tests.support.standins import LlmControl

R = TypeVar("R", bound=Resource)


def command(text: str = "hello", **changes: Any) -> SessionRequested:
    """A first turn that has ten minutes; its text is also its marker where it has the form `[[...]]`."""
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "request_id": new_id("req"),
        "account_id": "acct_1",
        "session_id": new_id("ses"),
        "seq": 1,
        "input": (MessageItem(role="user", content=text),),
        "settings": CallSettings(),
        "accepted_at": now,
        "deadline_at": now + timedelta(minutes=10),
        "grace_seconds": 5,
    }
    return SessionRequested(**fields | changes)


def cancel_of(asked: SessionRequested) -> SessionCancelRequested:
    return SessionCancelRequested(
        request_id=asked.request_id,
        account_id=asked.account_id,
        session_id=asked.session_id,
        seq=asked.seq,
    )


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """One orchestrator, started and stopped as the runtime does it."""
    app = build(settings)
    # On a slow machine a connection is waited for, and is no outage.
    app.database._acquire_timeout_seconds = GUARD_SECONDS
    async with contextlib.AsyncExitStack() as stack:
        await app.database.start()
        stack.push_async_callback(app.database.stop)
        for resource in app.resources:
            await resource.start()
            stack.push_async_callback(resource.stop)
        yield app
        for resource in app.resources:
            resource.drain()


def part(app: App, kind: type[R]) -> R:
    """The one resource of this kind."""
    (found,) = [resource for resource in app.resources if isinstance(resource, kind)]
    return found


@dataclass
class Orchestrator:
    """An orchestrator under test and everything around it."""

    settings: Settings
    bus: Bus
    database: Database
    peers: Peers
    llm: LlmControl
    endings: Listener
    progress: Listener
    app: App | None = None
    """The one that the fixture started."""

    async def send(self, *messages: SessionRequested | SessionCancelRequested) -> None:
        for message in messages:
            await self.bus.send(message)

    async def ended(self, count: int = 1) -> list[SessionEnded]:
        """The first `count` endings published since the start, in the order in which they came."""
        heard = await self.endings.wait_for(count)
        return [SessionEnded.model_validate_json(incoming.body) for incoming in heard]

    async def end_of(self, asked: SessionRequested) -> SessionEnded:
        """Send a command and wait for its ending."""
        await self.send(asked)
        return SessionEnded.model_validate_json((await self.endings.wait_about(asked.request_id)).body)

    def progressed(self, asked: SessionRequested) -> list[SessionProgressed]:
        heard = [SessionProgressed.model_validate_json(incoming.body) for incoming in self.progress.heard]
        return [message for message in heard if message.request_id == asked.request_id]

    async def task(self, asked: SessionRequested) -> dict[str, Any]:
        row = await self.database.fetchrow("SELECT * FROM tasks WHERE request_id = $1", asked.request_id)
        assert row is not None, "there is no such task"
        return dict(row)

    async def lease_ends(self, app: App, *, seconds: float = 0.5) -> None:
        """As if the last heartbeat that got through had been made so long ago that the lease has this left. No other
        may get through now; return when the process knows that its lease is over."""
        leases = part(app, Leases)

        async def is_over() -> bool:
            timer = leases._expiry
            # One that was under way may get through after all.
            if timer is not None and timer.when() > asyncio.get_running_loop().time() + seconds:
                leases._arm(leases._clock.monotonic() + seconds - self.settings.lease_seconds)
            return not leases.held

        await eventually(is_over)

    async def has_state(self, asked: SessionRequested, state: str, waiting_on: str | None = None) -> None:
        """Wait until the task is known and in this state."""

        async def holds() -> bool:
            row = await self.database.fetchrow(
                "SELECT state, waiting_on FROM tasks WHERE request_id = $1", asked.request_id
            )
            return row is not None and (row["state"], row["waiting_on"]) == (state, waiting_on)

        await eventually(holds)
