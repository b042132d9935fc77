"""/v1/requests/{id}/events: the log of a request, as pages or as a stream."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from services.gateway.headers import parse_last_event_id
from services.gateway.routes.call import Call
from services.gateway.schemas import EventPage, EventsQuery, EventView, Nothing
from services.gateway.waiting import Listener
from shared.errors import Problem, Transient, not_found
from shared.http import json_response
from shared.http_client import PeerRefused
from shared.logs import get_logger

log = get_logger(__name__)

_HEARTBEAT_SECONDS: Final = 10.0
_WRITE_SECONDS_MAX: Final = 20.0
"""A reader that takes nothing for this long is let go; it resumes from its cursor."""
_RECONNECT_MS: Final = 1000
_STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "private, no-store",
    "X-Accel-Buffering": "no",
}


async def get_events(call: Call[Nothing, EventsQuery]) -> web.StreamResponse:
    request_id = call.path_id("request")
    if not await call.services.requests.select_request_exists(request_id, call.account_id):
        raise not_found("request")
    last_event_id = parse_last_event_id(call.header("Last-Event-ID"))
    after = call.query.after if call.query.after is not None else last_event_id or 0
    if "text/event-stream" in ",".join(call.header("Accept")).lower():
        # A browser that reconnects repeats the URL it began with, so here the header says more than the query.
        return await _stream(call, request_id, max(after, last_event_id or 0))
    page = await call.services.log_hub.watch(
        request_id,
        lambda: _read(call, request_id, after),
        lambda page: bool(page.events) or page.closed,
        call.query.wait,
        after=after,
    )
    return json_response(page)


async def _read(call: Call[Nothing, EventsQuery], request_id: str, after: int) -> EventPage:
    try:
        return await call.services.results.events(request_id, call.account_id, after=after, limit=call.query.limit)
    except PeerRefused as error:
        if error.code == "invalid_cursor":
            raise Problem(error.status, error.code, error.detail) from None
        raise


async def _stream(call: Call[Nothing, EventsQuery], request_id: str, after: int) -> web.StreamResponse:
    """Events until the log is closed. A stream that must end before says from where to go on."""
    hub = call.services.log_hub
    if hub.is_full:
        raise Problem(503, "too_many_streams", "Too many clients wait. Poll instead.", headers={"Retry-After": "5"})
    with hub.listening(request_id, after) as listener:
        page = await _read(call, request_id, after)
        if page.closed and not page.events:
            return web.Response(status=204)  # tells an EventSource to stop reconnecting
        response = web.StreamResponse(headers=_STREAM_HEADERS)
        # A drain may end it at any time, when its head is long sent: so no connection outlives its stream.
        response.force_close()
        try:
            await response.prepare(call.http)
            await _write_log(call, request_id, response, page, listener)
        except (ConnectionError, TimeoutError):
            log.info("stream.left", request_id=request_id)
            if call.http.transport is not None:
                call.http.transport.abort()
    return response


async def _write_log(
    call: Call[Nothing, EventsQuery],
    request_id: str,
    response: web.StreamResponse,
    page: EventPage,
    listener: Listener,
) -> None:
    hub = call.services.log_hub
    await _write(response, f"retry: {_RECONNECT_MS}\n\n")
    try:
        while True:
            await _write(response, "".join(map(_frame, page.events)) or ": nothing new\n\n")
            if page.closed:
                return
            if hub.draining:
                break
            listener.after = page.next
            if page.events or await listener.wait(_HEARTBEAT_SECONDS):
                page = await _read(call, request_id, page.next)
    except Transient as error:
        log.warning("stream.interrupted", request_id=request_id, error=str(error))
    await _write(response, f'id: {page.next}\nevent: reconnect\ndata: {{"after":{page.next}}}\n\n')


async def _write(response: web.StreamResponse, text: str) -> None:
    async with asyncio.timeout(_WRITE_SECONDS_MAX):
        await response.write(text.encode())


def _frame(event: EventView) -> str:
    """One event; JSON has no bare line ends, so one data line holds it."""
    return f"id: {event.cursor}\nevent: {event.type}\ndata: {event.model_dump_json()}\n\n"
