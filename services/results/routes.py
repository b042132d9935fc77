"""The internal HTTP API: event pages, ledgers, transcripts, results by id."""

from __future__ import annotations

from typing import Final, Literal

from aiohttp import web

from services.results.event_log import Event
from services.results.schemas import EventPage, LogEntry, LogsLookup, LogsLookupReply, Lookup, LookupReply, Transcript
from services.results.store.logs import LogStore
from services.results.store.results import ResultStore
from shared.contracts.results import Ledger
from shared.errors import Problem, not_found
from shared.http import json_response, make_app, read_model, require_service_token

EVENTS_MAX: Final = 1000
TURNS_MAX: Final = 500
_BODY_BYTES_MAX: Final = 64 * 1024
_CURSOR_MAX: Final = 2**63 - 1
_SEQ_MAX: Final = 2**31 - 1


class Routes:
    """Answers our own services. Who asks about an account's data names the account; a foreign one gets 404."""

    def __init__(self, logs: LogStore, results: ResultStore) -> None:
        self._logs = logs
        self._results = results

    def app(self, service_token: str) -> web.Application:
        app = make_app(middlewares=[require_service_token(service_token)], body_bytes_max=_BODY_BYTES_MAX)
        app.add_routes(
            [
                web.get("/internal/requests/{request_id}/events", self.get_events),
                web.get("/internal/requests/{request_id}/ledger", self.get_ledger),
                web.get("/internal/sessions/{session_id}/transcript", self.get_transcript),
                web.post("/internal/results/lookup", self.post_lookup),
                web.post("/internal/logs/lookup", self.post_logs_lookup),
            ]
        )
        return app

    async def get_events(self, request: web.Request) -> web.Response:
        """The run of entries after a cursor. A request that nothing was heard of has an empty log. A cursor beyond what
        was ever shown is another request's: to wait there would be to miss the end."""
        account_id = _account(request)
        after = _number(request, "after", default=0, at_most=_CURSOR_MAX)
        limit = _limit(request, EVENTS_MAX)
        run = await self._logs.select_run(request.match_info["request_id"], after, limit)
        if run is None:
            return json_response(EventPage(next=after))
        _check_owner(run.account_id, account_id, "request")
        if after > run.visible_cursor:
            raise Problem(422, "invalid_cursor", "This log has not given that cursor. Start without a cursor.")
        end = run.events[-1].cursor if run.events else after
        return json_response(
            EventPage(
                events=tuple(_entry(event) for event in run.events),
                next=end,
                closed=run.closed and end >= run.visible_cursor,
            )
        )

    async def get_ledger(self, request: web.Request) -> web.Response:
        account_id = _account(request)
        found = await self._results.select_ledger(request.match_info["request_id"])
        if found is None:
            return json_response(Ledger())
        _check_owner(found[0], account_id, "request")
        return json_response(found[1])

    async def get_transcript(self, request: web.Request) -> web.Response:
        """Turns between two places of their session, from the first on or from the last back."""
        account_id = _account(request)
        turns = await self._results.select_transcript(
            request.match_info["session_id"],
            after_seq=_number(request, "after_seq", default=0, at_most=_SEQ_MAX),
            before_seq=_number(request, "before_seq", default=_SEQ_MAX, at_most=_SEQ_MAX),
            order=_order(request),
            limit=_limit(request, TURNS_MAX),
        )
        for owner, _ in turns:
            _check_owner(owner, account_id, "session")
        return json_response(Transcript(turns=tuple(turn for _, turn in turns)))

    async def post_lookup(self, request: web.Request) -> web.Response:
        """Those of the given requests that have ended. Asked by the gateway's sweeper, for any account."""
        lookup = await read_model(request, Lookup)
        results = await self._results.select_results(lookup.request_ids)
        return json_response(
            LookupReply(results=tuple({"type": result.type, **result.model_dump(mode="json")} for result in results))
        )

    async def post_logs_lookup(self, request: web.Request) -> web.Response:
        """Whose log has more to read. Asked by the gateway for all who wait there, of any account; it tells no more."""
        lookup = await read_model(request, LogsLookup)
        return json_response(LogsLookupReply(request_ids=tuple(await self._logs.select_ids_beyond(lookup.after))))


def _entry(event: Event) -> LogEntry:
    data = {"text": event.text} if event.data is None else event.data
    return LogEntry(cursor=event.cursor, type=event.type, at=event.at, data=data)


def _account(request: web.Request) -> str:
    account_id = request.headers.get("parley-account", "")
    if not account_id:
        raise Problem(400, "missing_account", "Name the account that asks in the Parley-Account header.")
    return account_id


def _check_owner(owner: str, account_id: str, what: str) -> None:
    if owner != account_id:
        raise not_found(what)


def _number(request: web.Request, name: str, *, default: int, at_most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    # isdecimal alone would let other scripts' digits pass.
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > at_most:
        raise Problem(400, "invalid_cursor", f"`{name}` is a whole number from 0, as an earlier answer gave it.")
    return int(text)


def _limit(request: web.Request, at_most: int) -> int:
    text = request.query.get("limit")
    if text is None:
        return at_most
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise Problem(400, "invalid_limit", f"`limit` is a whole number from 1; more than {at_most} is cut to it.")
    return min(int(text), at_most)


def _order(request: web.Request) -> Literal["asc", "desc"]:
    match request.query.get("order", "asc"):
        case "asc":
            return "asc"
        case "desc":
            return "desc"
        case _:
            raise Problem(400, "invalid_order", "`order` is asc or desc.")
