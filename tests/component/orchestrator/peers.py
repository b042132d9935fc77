"""Billing and results as the orchestrator sees them: one tiny server that speaks the internal contracts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from shared.contracts.billing import Eligibility, HoldReplies, HoldReply, HoldRequest, HoldRequests
from shared.http import make_app, read_model, require_service_token

TOKEN = "a-service-token-of-tests"
ALLOW = Eligibility(decision="ALLOW", reasons=())


@dataclass
class Peers:
    """What the peers answer, and what they were asked."""

    eligibility: Eligibility | None = ALLOW
    """None: billing is down."""
    turns: list[dict[str, Any]] | None = field(default_factory=list)
    """None: results is down."""
    batches: list[tuple[HoldRequest, ...]] = field(default_factory=list)
    transcripts_asked: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def holds(self) -> list[HoldRequest]:
        return [hold for batch in self.batches for hold in batch]

    def app(self) -> web.Application:
        app = make_app(middlewares=[require_service_token(TOKEN)], body_bytes_max=8 * 2**20)
        app.add_routes(
            [
                web.post("/internal/holds", self._hold),
                web.get("/internal/sessions/{id}/transcript", self._transcript),
            ]
        )
        return app

    async def _hold(self, request: web.Request) -> web.Response:
        asked = await read_model(request, HoldRequests)
        self.batches.append(asked.holds)
        if self.eligibility is None:
            return web.json_response({"code": "unavailable"}, status=503)
        replies = HoldReplies(
            holds=tuple(
                HoldReply(
                    request_id=hold.request_id, decision_id=f"dec_{hold.request_id}", eligibility=self.eligibility
                )
                for hold in asked.holds
            )
        )
        return web.json_response(text=replies.model_dump_json())

    async def _transcript(self, request: web.Request) -> web.Response:
        self.transcripts_asked.append((request.match_info["id"], request.headers.get("parley-account")))
        if self.turns is None:
            return web.json_response({"code": "unavailable"}, status=503)
        before = int(request.query["before_seq"])
        assert request.query["order"] == "desc"
        turns = sorted((turn for turn in self.turns if turn["seq"] < before), key=lambda turn: -turn["seq"])
        return web.json_response({"turns": turns[: int(request.query["limit"])]})
