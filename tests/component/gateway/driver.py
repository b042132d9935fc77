"""What a test does with a running gateway: call its API, speak and listen on the bus, look into its database."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from services.gateway.api_keys import new_key
from services.gateway.config import Settings
from services.gateway.store import AccountStore
from services.gateway.waiting import Hub
from shared.contracts.content import Failure, MessageItem, Outcome, Output, Usage
from shared.contracts.results import RESULT_BY_STATUS, ResultEnded, ResultUpdated
from shared.ids import new_id
from shared.loops import Periodic
from shared.messaging.owed import OwedPublishes
from shared.metrics import exposition
from shared.postgres import Database
from shared.runtime import App
from tests.support.bus import Bus, eventually
from tests.support.counted import handling
from tests.support.guard import GUARD_SECONDS

PAST = datetime(2020, 11, 1, 12, 0, tzinfo=UTC)
CALL_SECONDS_MAX = 55
"""Shorter than the waits that tests ask for: a poll that is answered by its end, and not by a wake, fails."""
TABLES = ("accounts", "api_keys", "eligibilities", "sessions", "requests", "parked_messages")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def code(self) -> str:
        code: str = self.body["code"]
        return code


@dataclass
class Customer:
    """An account with a key."""

    account_id: str
    key: str


@dataclass
class Gateway:
    base_url: str
    bus: Bus
    database: Database
    http: aiohttp.ClientSession
    settings: Settings
    app: App
    customer: Customer

    @property
    def hubs(self) -> list[Hub]:
        return [resource for resource in self.app.resources if isinstance(resource, Hub)]

    def sweep(self, name: str) -> None:
        """Run a periodic task now."""
        for resource in self.app.resources:
            if isinstance(resource, Periodic) and resource._name == name:
                resource.wake()

    def metrics(self) -> str:
        return exposition()[0].decode()

    def owed(self, name: str) -> OwedPublishes:
        return next(
            resource
            for resource in self.app.resources
            if isinstance(resource, OwedPublishes) and resource._name == name
        )

    async def age(self, request_id: str, seconds: float) -> None:
        """Let a request have been there for so much longer, and let somebody look after it."""
        await self.database.execute(
            """
            UPDATE requests
            SET accepted_at = accepted_at - $2::interval, deadline_at = deadline_at - $2::interval,
                dispatched_at = dispatched_at - $2::interval, next_check_at = next_check_at - $2::interval
            WHERE id = $1
            """,
            request_id,
            timedelta(seconds=seconds),
        )
        self.sweep("healing")

    def drain(self) -> None:
        for resource in self.app.resources:
            resource.drain()

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        raw: bytes | None = None,
    ) -> Reply:
        content = raw if raw is not None else None if body is None else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {key or self.customer.key}"}
        if content is not None:
            sent["Content-Type"] = "application/json"
        async with self.http.request(
            method,
            self.base_url + path,
            data=None if content is None else io.BytesIO(content),
            headers={**sent, **(headers or {})},
        ) as response:
            text = await response.text()
            return Reply(response.status, response.headers, json.loads(text) if text.startswith(("{", "[")) else text)

    async def new_customer(self, *, scope: str = "account") -> Customer:
        accounts = AccountStore(self.database)
        made = new_key("admin" if scope == "admin" else "account", self.settings.api_key_pepper.get_secret_value())
        account_id = None
        if scope == "account":
            account_id = (await accounts.insert_account(new_id("acct"), "tests")).id
        await accounts.insert_key(
            new_id("key"), account_id, name=None, secret_hash=made.secret_hash, last_four=made.last_four
        )
        return Customer(account_id or "", made.text)

    async def new_session(self, **fields: object) -> str:
        reply = await self.call("POST", "/v1/sessions", fields)
        assert reply.status == 201, reply
        session_id: str = reply.body["id"]
        return session_id

    async def send(self, session_id: str, text: str = "hello", **fields: object) -> Any:
        """The body of the 202."""
        reply = await self.call("POST", f"/v1/sessions/{session_id}/requests", {"input": text, **fields})
        assert reply.status == 202, reply
        return reply.body

    async def get(self, request_id: str, **headers: str) -> Reply:
        return await self.call("GET", f"/v1/requests/{request_id}", headers=headers)

    async def end(self, request: Mapping[str, Any], status: Outcome = "completed", **changes: Any) -> None:
        """Say on the bus that a request has ended, and return once the gateway shows it and has acked it."""
        async with self.handling("gateway.results", 1):
            await self.bus.send(ending_of(request, self.customer.account_id, status, **changes))
        await self.until_status(request["id"], status)

    async def until_status(self, request_id: str, status: str) -> None:
        async def reached() -> bool:
            found = await self.database.fetchval("SELECT state FROM requests WHERE id = $1", request_id)
            return bool(found == status)

        await eventually(reached)

    async def dump(self) -> dict[str, str]:
        """A digest of every row of every table, once what is owed is marked as paid."""
        await eventually(self._is_paid)
        digests = {}
        for table in TABLES:
            rows = await self.database.fetch(f"SELECT t::text AS row FROM {table} t ORDER BY 1")
            digests[table] = hashlib.sha256("\n".join(row["row"] for row in rows).encode()).hexdigest()
        return digests

    async def _is_paid(self) -> bool:
        owed = await self.database.fetchval(
            """
            SELECT count(*) FROM requests
            WHERE requested_owed_at IS NOT NULL OR cancel_owed_at IS NOT NULL OR abandon_owed_at IS NOT NULL
            """
        )
        return bool(owed == 0)

    def handling(self, queue: str, count: int) -> contextlib.AbstractAsyncContextManager[None]:
        """Leave the block once `count` more deliveries of this queue were handled, acked or dropped."""
        return handling(queue, count)


async def start_gateway(stack: contextlib.AsyncExitStack, app: App, settings: Settings, beside: Bus) -> Gateway:
    # Fifty calls at once share ten connections: on a slow machine the last of them waits, and is no outage.
    app.database._acquire_timeout_seconds = GUARD_SECONDS
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS_MAX)
    session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
    for resource in (app.database, *app.resources):
        await resource.start()
        stack.push_async_callback(resource.stop)
    base_url = f"http://127.0.0.1:{settings.http_port}"
    gateway = Gateway(base_url, beside, app.database, session, settings, app, Customer("", ""))
    stack.callback(gateway.drain)
    gateway.customer = await gateway.new_customer()
    return gateway


def ending_of(
    request: Mapping[str, Any], account_id: str, status: Outcome = "completed", **changes: Any
) -> ResultEnded:
    """The result.* message of a request as the API showed it."""
    output = Output(items=(MessageItem(role="assistant", content="Hi."),), finish_reason="stop")
    is_answered = status in ("completed", "incomplete")
    fields: dict[str, Any] = {
        "request_id": request["id"],
        "account_id": account_id,
        "session_id": request["session_id"],
        "seq": request["seq"],
        "cursor": 2**20 + 2,
        "status": status,
        "output": output if is_answered else None,
        "error": None if status == "completed" else Failure(code=f"{status}_in_test", message="As the test says."),
        "usage": Usage(input_tokens=3, output_tokens=4) if is_answered else None,
        "model": "default",
        "provider_called": is_answered,
        "started_at": PAST if is_answered else None,
        "ended_at": PAST,
        "ended_by": "session.ended",
    }
    return RESULT_BY_STATUS[status](**{**fields, **changes})


def update_of(request: Mapping[str, Any], account_id: str, **changes: Any) -> ResultUpdated:
    """The result.updated message of a request that runs."""
    fields = {"attempt": 1, "cursor": 2**20 + 1, "at": PAST, "waiting_on": None, **changes}
    return ResultUpdated(
        request_id=request["id"], account_id=account_id, session_id=request["session_id"], seq=request["seq"], **fields
    )
