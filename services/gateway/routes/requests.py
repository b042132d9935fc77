"""/v1/sessions/{id}/requests and /v1/requests"""

from __future__ import annotations

from aiohttp import web

from services.gateway import snapshot
from services.gateway.headers import parse_idempotency_key, parse_wait_preference
from services.gateway.pagination import decode_cursor, decode_seq_cursor, encode_cursor
from services.gateway.routes.call import Call
from services.gateway.schemas import CreateRequest, Nothing, Page, RequestListQuery, RequestSummary
from shared.http import json_response


async def create_request(call: Call[CreateRequest, Nothing]) -> web.Response:
    """202 once it is durable; the same again for a repeat under the same Idempotency-Key."""
    key = parse_idempotency_key(call.header("Idempotency-Key"))
    request, is_replay = await call.services.admission.accept(
        call.caller, call.path_id("session"), call.body, call.raw_body, key
    )
    shown = call.services.reader.view(request)
    headers = {"Location": f"/v1/requests/{request.id}"} | snapshot.retry_after(shown.poll_after_ms)
    return json_response(shown, status=202, headers=headers | ({"Idempotent-Replayed": "true"} if is_replay else {}))


async def get_request(call: Call[Nothing, Nothing]) -> web.Response:
    wait_seconds = parse_wait_preference(call.header("Prefer"))
    read = await call.services.reader.read(
        call.path_id("request"),
        call.account_id,
        if_none_match=call.header("If-None-Match"),
        wait_seconds=wait_seconds or 0,
    )
    headers = {"ETag": read.etag} | snapshot.retry_after(read.view.poll_after_ms)
    if wait_seconds is not None:
        headers["Preference-Applied"] = f"wait={wait_seconds}"
    if read.is_known:
        return web.Response(status=304, headers={"Cache-Control": "private, no-store"} | headers)
    return json_response(read.view, headers=headers)


async def list_requests(call: Call[Nothing, RequestListQuery]) -> web.Response:
    found = await call.services.requests.select_requests_before(
        call.account_id, decode_cursor("requests", call.query.cursor), call.query.limit + 1, call.query.status
    )
    page = found[: call.query.limit]
    more = encode_cursor("requests", page[-1].id) if len(found) > len(page) else None
    return json_response(Page[RequestSummary](data=tuple(map(snapshot.summarize, page)), next=more))


async def list_session_requests(call: Call[Nothing, RequestListQuery]) -> web.Response:
    session_id = call.path_id("session")
    await call.services.sessions.get(session_id, call.account_id)
    before_seq = decode_seq_cursor("session_requests", call.query.cursor)
    found = await call.services.requests.select_session_requests_before(
        session_id, before_seq, call.query.limit + 1, call.query.status
    )
    page = found[: call.query.limit]
    more = encode_cursor("session_requests", page[-1].seq) if len(found) > len(page) else None
    return json_response(Page[RequestSummary](data=tuple(map(snapshot.summarize, page)), next=more))


async def cancel_request(call: Call[Nothing, Nothing]) -> web.Response:
    """The request as it is now. It ends when results says so."""
    request_id = call.path_id("request")
    await call.services.cancelling.cancel(request_id, call.account_id)
    shown = call.services.reader.view(await call.services.reader.get(request_id, call.account_id))
    return json_response(shown, headers=snapshot.retry_after(shown.poll_after_ms))


async def get_timeline(call: Call[Nothing, Nothing]) -> web.Response:
    request = await call.services.reader.get(call.path_id("request"), call.account_id)
    return json_response(await call.services.timeline.read(request))
