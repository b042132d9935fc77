"""/v1/sessions"""

from __future__ import annotations

from aiohttp import web

from services.gateway.headers import parse_idempotency_key
from services.gateway.pagination import decode_cursor, decode_seq_cursor, encode_cursor
from services.gateway.records import Session
from services.gateway.routes.call import Call
from services.gateway.schemas import CreateSession, ListQuery, Nothing, Page, SessionView, TranscriptEntry
from shared.http import json_response


async def create_session(call: Call[CreateSession, Nothing]) -> web.Response:
    key = parse_idempotency_key(call.header("Idempotency-Key"))
    session, is_replay = await call.services.sessions.create(call.account_id, call.body, call.raw_body, key)
    headers = {"Location": f"/v1/sessions/{session.id}"} | ({"Idempotent-Replayed": "true"} if is_replay else {})
    return json_response(_view(session), status=201, headers=headers)


async def list_sessions(call: Call[Nothing, ListQuery]) -> web.Response:
    before_id = decode_cursor("sessions", call.query.cursor)
    found = await call.services.sessions.list_before(call.account_id, before_id, call.query.limit + 1)
    page = found[: call.query.limit]
    more = encode_cursor("sessions", page[-1].id) if len(found) > len(page) else None
    return json_response(Page[SessionView](data=tuple(_view(session) for session in page), next=more))


async def get_session(call: Call[Nothing, Nothing]) -> web.Response:
    return json_response(_view(await call.services.sessions.get(call.path_id("session"), call.account_id)))


async def delete_session(call: Call[Nothing, Nothing]) -> web.Response:
    await call.services.sessions.delete(call.path_id("session"), call.account_id)
    return web.Response(status=204)


async def list_messages(call: Call[Nothing, ListQuery]) -> web.Response:
    """The newest turns, in the order in which they were said; `next` leads to the turns before them."""
    session_id = call.path_id("session")
    await call.services.sessions.get(session_id, call.account_id)
    before_seq = decode_seq_cursor("messages", call.query.cursor)
    turns = await call.services.results.transcript(
        session_id, call.account_id, before_seq=before_seq, limit=call.query.limit + 1
    )
    shown = turns[-call.query.limit :]
    more = encode_cursor("messages", shown[0].seq) if len(turns) > len(shown) else None
    data = tuple(
        TranscriptEntry(request_id=turn.request_id, seq=turn.seq, item=item)
        for turn in shown
        for item in (*turn.input, *turn.output_items)
    )
    return json_response(Page[TranscriptEntry](data=data, next=more))


def _view(session: Session) -> SessionView:
    return SessionView(
        id=session.id,
        status="running" if session.is_running else "idle",
        model=session.model,
        instructions=session.instructions,
        metadata=session.metadata,
        open_requests=session.open_requests,
        created_at=session.created_at,
    )
