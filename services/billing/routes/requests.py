"""What other services ask about a request: may it run, what did it cost, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from services.billing.holding import Holding
from services.billing.routes.owner import account_in_header
from services.billing.schemas import RecordEntry
from services.billing.store.records import RecordStore, RequestRecords
from shared.contracts.billing import HoldReplies, HoldRequests
from shared.errors import not_found
from shared.http import json_response, read_model


class RequestRoutes:
    """/internal/holds and everything under /internal/requests."""

    def __init__(self, holding: Holding, records: RecordStore) -> None:
        self._holding = holding
        self._records = records

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/internal/holds", self.hold),
            web.get("/internal/requests/{request_id}/charge", self.charge),
            web.get("/internal/requests/{request_id}/records", self.records),
        ]

    async def hold(self, request: web.Request) -> web.Response:
        """Each question names its account; the answers stand in the order of the questions."""
        asked = await read_model(request, HoldRequests)
        return json_response(HoldReplies(holds=tuple(await self._holding.answer(asked.holds))))

    async def charge(self, request: web.Request) -> web.Response:
        charge = await self._records.select_charge(request.match_info["request_id"], account_in_header(request))
        if charge is None:
            raise not_found("charge")
        return json_response(charge)

    async def records(self, request: web.Request) -> web.Response:
        account_id = account_in_header(request)
        found = await self._records.select_request_records(request.match_info["request_id"])
        if found is not None and found.account_id != account_id:
            raise not_found("request")
        entries = [] if found is None else [entry.model_dump(mode="json") for entry in _entries(found)]
        return json_response({"entries": entries})


def _entries(found: RequestRecords) -> Iterator[RecordEntry]:
    """In causal order: decided, held, ended, charged."""
    for row in found.decisions:
        eligibility = json.loads(row["eligibility"])
        data = {name: eligibility[name] for name in ("decision", "reasons", "plan", "remaining", "valid_until")}
        versions = {"policy_version": row["policy_version"], "fact_version": row["fact_version"]}
        yield RecordEntry(
            at=row["decided_at"], type="decision.made", data={"decision_id": row["decision_id"], **data, **versions}
        )
    if found.hold is not None:
        yield from _hold_entries(found.hold)
    for row in found.ledger:
        data = {"kind": row["kind"], "tokens": row["tokens"], "reason": row["reason"]}
        yield RecordEntry(at=row["at"], type="charge.recorded", data=data)


def _hold_entries(hold: Any) -> Iterator[RecordEntry]:
    """A denied request has no hold to tell of: its row only keeps the answer. One that ended before anybody asked
    has its end, also once somebody has."""
    was_held = hold["period_start"] is not None
    was_denied = not was_held and hold["expires_at"] is not None
    if was_held:
        data = {"tokens": hold["held_tokens"], "expires_at": hold["expires_at"].isoformat()}
        yield RecordEntry(at=hold["created_at"], type="hold.created", data=data)
    if hold["ended_at"] is not None and (not was_denied or hold["state"] == "settled"):
        data = {"tokens": hold["charged_tokens"], "reason": hold["reason"], "result": hold["result"]}
        yield RecordEntry(at=hold["ended_at"], type=f"hold.{hold['state']}", data=data)
