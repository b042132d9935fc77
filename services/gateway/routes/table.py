"""Every route of the public API. The server and its OpenAPI description are both made of this table."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from aiohttp import web

from services.gateway.routes import accounts, billing, events, requests, sessions
from services.gateway.routes.call import Route, Services
from services.gateway.schemas import (
    AccountView,
    CreateAccount,
    CreateCheckout,
    CreatedKey,
    CreateKey,
    CreatePortal,
    CreateRequest,
    CreateSession,
    EligibilityView,
    EventPage,
    EventsQuery,
    KeyView,
    ListQuery,
    Page,
    Redirect,
    RequestListQuery,
    RequestSummary,
    RequestView,
    SessionView,
    Timeline,
    TranscriptEntry,
)
from shared.contracts.billing import UsageReport
from shared.http import make_app

JSON_BYTES_PER_TEXT_BYTE: Final = 6
"""Of text written in escapes alone (`\\u0001`): so an input of the greatest size fits however it is written."""
BODY_BYTES_BESIDE_INPUT: Final = 512 * 1024
"""Room for tools, formats and JSON's own words beside the text of the input."""

ROUTES: Final[tuple[Route[Any, Any], ...]] = (
    Route(
        "POST",
        "/v1/sessions",
        sessions.create_session,
        "Begin a session",
        SessionView,
        body=CreateSession,
        status=201,
        codes=("invalid_idempotency_key", "idempotency_key_reused", "model_not_found", "session_not_found"),
        headers=("Idempotency-Key",),
    ),
    Route(
        "GET",
        "/v1/sessions",
        sessions.list_sessions,
        "List sessions, newest first",
        Page[SessionView],
        query=ListQuery,
        codes=("invalid_cursor",),
    ),
    Route(
        "GET",
        "/v1/sessions/{session_id}",
        sessions.get_session,
        "Show a session",
        SessionView,
        codes=("session_not_found",),
    ),
    Route(
        "DELETE",
        "/v1/sessions/{session_id}",
        sessions.delete_session,
        "Delete a session; its open requests, queued ones too, run and are charged unless they are cancelled",
        None,
        status=204,
        codes=("session_not_found",),
    ),
    Route(
        "GET",
        "/v1/sessions/{session_id}/messages",
        sessions.list_messages,
        "Read the transcript: the newest turns, oldest of them first",
        Page[TranscriptEntry],
        query=ListQuery,
        codes=("session_not_found", "invalid_cursor"),
    ),
    Route(
        "POST",
        "/v1/sessions/{session_id}/requests",
        requests.create_request,
        "Send a turn",
        RequestView,
        body=CreateRequest,
        status=202,
        codes=(
            "invalid_idempotency_key",
            "idempotency_key_reused",
            "payment_required",
            "session_not_found",
            "model_not_found",
            "input_too_large",
            "session_queue_full",
            "account_queue_full",
        ),
        headers=("Idempotency-Key",),
    ),
    Route(
        "GET",
        "/v1/sessions/{session_id}/requests",
        requests.list_session_requests,
        "List the requests of a session, newest first",
        Page[RequestSummary],
        query=RequestListQuery,
        codes=("session_not_found", "invalid_cursor"),
    ),
    Route(
        "GET",
        "/v1/requests",
        requests.list_requests,
        "List requests, newest first",
        Page[RequestSummary],
        query=RequestListQuery,
        codes=("invalid_cursor",),
    ),
    Route(
        "GET",
        "/v1/requests/{request_id}",
        requests.get_request,
        "Show a request; with Prefer: wait=N, once it has changed or ended",
        RequestView,
        codes=("request_not_found",),
        headers=("If-None-Match", "Prefer"),
    ),
    Route(
        "GET",
        "/v1/requests/{request_id}/events",
        events.get_events,
        "Read a request's log after a cursor, as a page or as a stream",
        EventPage,
        query=EventsQuery,
        codes=("request_not_found", "invalid_cursor", "invalid_last_event_id", "too_many_streams"),
        headers=("Accept", "Last-Event-ID"),
        events=True,
    ),
    Route(
        "POST",
        "/v1/requests/{request_id}/cancel",
        requests.cancel_request,
        "Cancel a request",
        RequestView,
        codes=("request_not_found",),
    ),
    Route(
        "GET",
        "/v1/requests/{request_id}/timeline",
        requests.get_timeline,
        "Explain a request: everything that happened to it",
        Timeline,
        codes=("request_not_found",),
    ),
    Route("GET", "/v1/eligibility", billing.get_eligibility, "May the account send requests now?", EligibilityView),
    Route("GET", "/v1/usage", billing.get_usage, "What the account used in its present period", UsageReport),
    Route(
        "POST",
        "/v1/billing/checkout",
        billing.create_checkout,
        "Buy a plan on a page of Stripe's",
        Redirect,
        body=CreateCheckout,
        codes=("plan_not_found", "price_not_in_plan", "already_subscribed", "stripe_refused"),
    ),
    Route(
        "POST",
        "/v1/billing/portal",
        billing.create_portal,
        "Manage what was bought on a page of Stripe's",
        Redirect,
        body=CreatePortal,
        codes=("no_customer", "stripe_refused"),
    ),
    Route(
        "POST",
        "/v1/admin/accounts",
        accounts.create_account,
        "Create an account",
        AccountView,
        body=CreateAccount,
        scope="admin",
        status=201,
    ),
    Route(
        "GET",
        "/v1/admin/accounts",
        accounts.list_accounts,
        "List accounts, newest first",
        Page[AccountView],
        query=ListQuery,
        scope="admin",
        codes=("invalid_cursor",),
    ),
    Route(
        "GET",
        "/v1/admin/accounts/{account_id}",
        accounts.get_account,
        "Show an account",
        AccountView,
        scope="admin",
        codes=("account_not_found",),
    ),
    Route(
        "POST",
        "/v1/admin/accounts/{account_id}/keys",
        accounts.create_key,
        "Create a key; the answer is the only one that shows it",
        CreatedKey,
        body=CreateKey,
        scope="admin",
        status=201,
        codes=("account_not_found",),
    ),
    Route(
        "GET",
        "/v1/admin/accounts/{account_id}/keys",
        accounts.list_keys,
        "List an account's keys, newest first",
        Page[KeyView],
        query=ListQuery,
        scope="admin",
        codes=("account_not_found", "invalid_cursor"),
    ),
    Route(
        "DELETE",
        "/v1/admin/accounts/{account_id}/keys/{key_id}",
        accounts.revoke_key,
        "Revoke a key",
        None,
        scope="admin",
        status=204,
        codes=("account_not_found", "key_not_found"),
    ),
)


def public_app(services: Services, *, input_bytes_max: int) -> web.Application:
    """The application that serves the table."""
    app = make_app(body_bytes_max=input_bytes_max * JSON_BYTES_PER_TEXT_BYTE + BODY_BYTES_BESIDE_INPUT)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, partial(route.__call__, services))
    return app
