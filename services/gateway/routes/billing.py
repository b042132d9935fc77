"""/v1/eligibility, /v1/usage and /v1/billing: what billing says and sells, as the account may see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from services.gateway.problems import STATUS_BY_CODE
from services.gateway.routes.call import Call
from services.gateway.schemas import CreateCheckout, CreatePortal, EligibilityView, Nothing
from shared.contracts.billing import Eligibility
from shared.errors import Problem, Transient
from shared.http import json_response
from shared.http_client import PeerRefused

_UNKNOWN = Eligibility(decision="INDETERMINATE", reasons=("billing_unreachable",))


async def get_eligibility(call: Call[Nothing, Nothing]) -> web.Response:
    """Billing's present decision; while it is away, the last one heard."""
    try:
        present = await call.services.billing.eligibility(call.account_id)
    except Transient:
        present = await call.services.accounts.select_eligibility(call.account_id) or _UNKNOWN
    return json_response(EligibilityView(**present.model_dump()))


async def create_checkout(call: Call[CreateCheckout, Nothing]) -> web.Response:
    with _refusals_named():
        return json_response(await call.services.billing.checkout(call.account_id, call.body))


async def create_portal(call: Call[CreatePortal, Nothing]) -> web.Response:
    with _refusals_named():
        return json_response(await call.services.billing.portal(call.account_id, call.body))


@contextmanager
def _refusals_named() -> Iterator[None]:
    """Billing's refusals that the API knows, under the same code; any other is our own error."""
    try:
        yield
    except PeerRefused as error:
        if error.code not in STATUS_BY_CODE:
            raise
        raise Problem(STATUS_BY_CODE[error.code], error.code, error.detail) from error


async def get_usage(call: Call[Nothing, Nothing]) -> web.Response:
    return json_response(await call.services.billing.usage(call.account_id))
