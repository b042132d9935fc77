"""What the gateway asks billing and results over their internal HTTP APIs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from services.gateway.schemas import CreateCheckout, CreatePortal, EventPage, Redirect
from shared.contracts.billing import Charge, Eligibility, UsageReport
from shared.contracts.content import Item
from shared.contracts.message import Contract
from shared.contracts.results import Ledger, ResultEnded
from shared.http_client import InternalApi, PeerRefused


class Record(Contract):
    """One of billing's records about a request."""

    at: datetime
    type: str
    data: dict[str, Any]


class Records(Contract):
    entries: tuple[Record, ...]


class TranscriptTurn(Contract):
    request_id: str
    seq: int
    input: tuple[Item, ...]
    output_items: tuple[Item, ...]


class Transcript(Contract):
    turns: tuple[TranscriptTurn, ...]


class LookupBody(Contract):
    request_ids: tuple[str, ...]


class LookupReply(Contract):
    results: tuple[ResultEnded, ...]


class LogsLookupBody(Contract):
    after: dict[str, int]


class LogsLookupReply(Contract):
    request_ids: tuple[str, ...]


class Billing:
    """Every question names the account, which billing checks too."""

    def __init__(self, api: InternalApi, *, charge_api: InternalApi, purchase_api: InternalApi) -> None:
        self._api = api
        self._charge_api = charge_api
        self._purchase_api = purchase_api

    async def eligibility(self, account_id: str) -> Eligibility:
        body = await self._api.get(f"/internal/accounts/{account_id}/eligibility", account_id=account_id)
        return Eligibility.model_validate_json(body)

    async def usage(self, account_id: str) -> UsageReport:
        body = await self._api.get(f"/internal/accounts/{account_id}/usage", account_id=account_id)
        return UsageReport.model_validate_json(body)

    async def charge(self, request_id: str, account_id: str) -> Charge | None:
        """None until it is settled."""
        try:
            body = await self._charge_api.get(f"/internal/requests/{request_id}/charge", account_id=account_id)
        except PeerRefused as error:
            if error.status == 404:
                return None
            raise
        return Charge.model_validate_json(body)

    async def records(self, request_id: str, account_id: str) -> tuple[Record, ...]:
        body = await self._api.get(f"/internal/requests/{request_id}/records", account_id=account_id)
        return Records.model_validate_json(body).entries

    async def checkout(self, account_id: str, wish: CreateCheckout) -> Redirect:
        """A page of Stripe's on which the account buys a plan; raises PeerRefused with billing's code."""
        return await self._redirect("checkout", account_id, wish)

    async def portal(self, account_id: str, wish: CreatePortal) -> Redirect:
        return await self._redirect("portal", account_id, wish)

    async def _redirect(self, page: str, account_id: str, wish: CreateCheckout | CreatePortal) -> Redirect:
        body = await self._purchase_api.post(f"/internal/accounts/{account_id}/{page}", wish, account_id=account_id)
        return Redirect.model_validate_json(body)


class Results:
    def __init__(self, api: InternalApi) -> None:
        self._api = api

    async def events(self, request_id: str, account_id: str, *, after: int, limit: int) -> EventPage:
        """Raises PeerRefused `invalid_cursor` where the log has not given this one."""
        body = await self._api.get(
            f"/internal/requests/{request_id}/events", account_id=account_id, params={"after": after, "limit": limit}
        )
        return EventPage.model_validate_json(body)

    async def ledger(self, request_id: str, account_id: str) -> Ledger:
        body = await self._api.get(f"/internal/requests/{request_id}/ledger", account_id=account_id)
        return Ledger.model_validate_json(body)

    async def transcript(
        self, session_id: str, account_id: str, *, before_seq: int | None, limit: int
    ) -> tuple[TranscriptTurn, ...]:
        """The last turns before a place in the session, oldest first."""
        params: dict[str, str | int] = {"limit": limit, "order": "desc"}
        if before_seq is not None:
            params["before_seq"] = before_seq
        body = await self._api.get(f"/internal/sessions/{session_id}/transcript", account_id=account_id, params=params)
        return Transcript.model_validate_json(body).turns[::-1]

    async def lookup(self, request_ids: Sequence[str]) -> tuple[ResultEnded, ...]:
        """The endings of those that have one."""
        body = await self._api.post("/internal/results/lookup", LookupBody(request_ids=tuple(request_ids)))
        return LookupReply.model_validate_json(body).results

    async def logs_moved(self, after: Mapping[str, int]) -> tuple[str, ...]:
        """Of these requests, each with the cursor up to which its log is known, those whose log has come further."""
        body = await self._api.post("/internal/logs/lookup", LogsLookupBody(after=dict(after)))
        return LogsLookupReply.model_validate_json(body).request_ids
