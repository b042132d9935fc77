"""Billing and results as the gateway sees them: tiny servers that speak the internal contracts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web

from shared.http import RouteHandler, make_app, require_service_token

TOKEN = "a-service-token-of-tests"


@dataclass
class Peers:
    """What the peers will answer, and what they were asked."""

    eligibility: dict[str, Any] | None = field(default_factory=lambda: {"decision": "ALLOW", "reasons": []})
    """None: billing is down."""
    charges: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    log_is_closed: bool = False
    turns: list[dict[str, Any]] = field(default_factory=list)
    ledger: dict[str, Any] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)
    results_are_down: bool = False
    moved: dict[str, int] = field(default_factory=dict)
    """How far the log of a request is said to have come."""
    looked_up: list[dict[str, int]] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def app(self) -> web.Application:

        async def noted(request: web.Request, handler: RouteHandler) -> web.StreamResponse:
            self.asked.append((request.path, request.headers.get("parley-account")))
            return await handler(request)

        app = make_app(middlewares=[require_service_token(TOKEN), noted], body_bytes_max=64 * 1024)
        app.add_routes(
            [
                web.get("/internal/accounts/{id}/eligibility", self._eligibility),
                web.get("/internal/accounts/{id}/usage", self._usage),
                web.post("/internal/accounts/{id}/checkout", self._checkout),
                web.get("/internal/requests/{id}/charge", self._charge),
                web.get("/internal/requests/{id}/records", self._records),
                web.get("/internal/requests/{id}/events", self._events),
                web.get("/internal/requests/{id}/ledger", self._ledger),
                web.get("/internal/sessions/{id}/transcript", self._transcript),
                web.post("/internal/results/lookup", self._lookup),
                web.post("/internal/logs/lookup", self._logs_lookup),
            ]
        )
        return app

    def add_event(self, cursor: int, event_type: str, at: datetime, **data: object) -> None:
        self.events.append({"cursor": cursor, "type": event_type, "at": at.isoformat(), "data": data})

    async def _eligibility(self, _: web.Request) -> web.Response:
        if self.eligibility is None:
            return web.json_response({"code": "unavailable"}, status=503)
        return web.json_response({"sequence": 1, **self.eligibility})

    async def _usage(self, _: web.Request) -> web.Response:
        used = {"granted_tokens": 1000, "settled_tokens": 7, "held_tokens": 0, "requests_charged": 1}
        return web.json_response({"plan": "pro", "period_start": None, "period_end": None, **used})

    async def _checkout(self, request: web.Request) -> web.Response:
        if (await request.json())["plan"] != "pro":
            return web.json_response({"code": "plan_not_found"}, status=422)
        return web.json_response({"url": "https://stripe.example/pay"})

    async def _charge(self, request: web.Request) -> web.Response:
        charge = self.charges.get(request.match_info["id"])
        return web.json_response(charge) if charge else web.json_response({"code": "charge_not_found"}, status=404)

    async def _records(self, _: web.Request) -> web.Response:
        return web.json_response({"entries": self.records})

    async def _events(self, request: web.Request) -> web.Response:
        after, limit = int(request.query["after"]), int(request.query["limit"])
        if self.events and after > self.events[-1]["cursor"]:
            return web.json_response({"code": "invalid_cursor", "detail": "Not given."}, status=422)
        run = [event for event in self.events if event["cursor"] > after][:limit]
        end = run[-1]["cursor"] if run else after
        is_closed = self.log_is_closed and all(event["cursor"] <= end for event in self.events)
        return web.json_response({"events": run, "next": end, "closed": is_closed})

    async def _ledger(self, _: web.Request) -> web.Response:
        return web.json_response(self.ledger)

    async def _transcript(self, request: web.Request) -> web.Response:
        before = int(request.query.get("before_seq", 2**31))
        turns = sorted((turn for turn in self.turns if turn["seq"] < before), key=lambda turn: -turn["seq"])
        assert request.query["order"] == "desc"
        return web.json_response({"turns": turns[: int(request.query["limit"])]})

    async def _lookup(self, request: web.Request) -> web.Response:
        if self.results_are_down:
            return web.json_response({"code": "unavailable"}, status=503)
        wanted = (await request.json())["request_ids"]
        return web.json_response({"results": [entry for entry in self.results if entry["request_id"] in wanted]})

    async def _logs_lookup(self, request: web.Request) -> web.Response:
        after = (await request.json())["after"]
        self.looked_up.append(after)
        return web.json_response(
            {"request_ids": [key for key, cursor in self.moved.items() if cursor > after.get(key, cursor)]}
        )
