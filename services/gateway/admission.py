"""Accept a request exactly once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Final

from services.gateway.account_load import AccountLoad
from services.gateway.dispatch import Outbox
from services.gateway.eligibility import EligibilityCheck
from services.gateway.records import Accept, Accepted, Caller, KnownKey, QueueFull, Request, SessionMissing
from services.gateway.schemas import CreateRequest
from services.gateway.store import RequestStore, TurnStore
from services.gateway.store.turns import AcceptOutcome
from shared import tracing
from shared.errors import Problem, not_found
from shared.group_commit import GroupCommit
from shared.ids import new_id
from shared.logs import get_logger
from shared.metrics import counter
from shared.postgres import DatabaseRefused

log = get_logger(__name__)

_KEY_INDEX: Final = "requests_by_idempotency_key"
_QUEUE_FULL_RETRY_SECONDS: Final = 2

_accepts = counter("requests_accepted", "Requests accepted, by whether they were new.", ("outcome",))


class Admission:
    """Limits are checked after the idempotency key: a client that repeats an accepted request gets its answer."""

    def __init__(
        self,
        turns: TurnStore,
        requests: RequestStore,
        eligibility: EligibilityCheck,
        load: AccountLoad,
        outbox: Outbox,
        *,
        models: Collection[str],
        deadline_seconds: int,
        input_bytes_max: int,
    ) -> None:
        self._requests = requests
        self._eligibility = eligibility
        self._load = load
        self._outbox = outbox
        self._models = models
        self._deadline_seconds = deadline_seconds
        self._input_bytes_max = input_bytes_max
        # One session's accepts never share a batch: each must see the seq and the turn that the one before it took.
        self._commits = GroupCommit(
            "accepts", turns.insert_requests_unless_key_used, key=lambda accept: accept.session_id
        )

    async def accept(
        self, caller: Caller, session_id: str, body: CreateRequest, raw_body: bytes, idempotency_key: str | None
    ) -> tuple[Request, bool]:
        """The request, and whether it is the replay of an earlier one."""
        with tracing.span("accept") as step:
            accept = self._accept_of(caller, session_id, body, raw_body, idempotency_key)
            request, is_replay = await self._accepted(caller, body, accept)
            step.set(
                {
                    "parley.request_id": request.id,
                    "parley.session_id": request.session_id,
                    "parley.account_id": request.account_id,
                    "parley.is_replay": is_replay,
                }
            )
        return request, is_replay

    async def _accepted(self, caller: Caller, body: CreateRequest, accept: Accept) -> tuple[Request, bool]:
        refusal = await self._refusal(caller, body)
        if refusal is not None:
            known = await self._known(accept)
            if known is None:
                raise refusal
            return await self._replay(accept, known), True
        return await self._conclude(accept, body, await self._commit(accept))

    async def _commit(self, accept: Accept) -> AcceptOutcome:
        try:
            return await self._commits.submit(accept)
        except DatabaseRefused as error:
            # Another replica has used the key since our statement began; a new statement sees its row.
            known = await self._known(accept) if error.constraint_name == _KEY_INDEX else None
            if known is None:
                raise
            return known

    async def _conclude(self, accept: Accept, body: CreateRequest, outcome: AcceptOutcome) -> tuple[Request, bool]:
        match outcome:
            case Accepted():
                self._announce(outcome)
                return _as_request(outcome, body.metadata), False
            case KnownKey():
                return await self._replay(accept, outcome), True
            case SessionMissing():
                raise not_found("session")
            case QueueFull():
                raise _queue_full("session_queue_full", "This session")

    def _announce(self, accepted: Accepted) -> None:
        turn = accepted.turn
        self._load.add(turn.account_id)
        if accepted.has_turn:
            self._outbox.run([turn])
        _accepts.labels("fresh").inc()
        log.info("request.accepted", request_id=turn.request_id, session_id=turn.session_id, seq=turn.seq)

    async def _refusal(self, caller: Caller, body: CreateRequest) -> Problem | None:
        """Why this body is not accepted now, unless it was accepted before."""
        if body.model is not None and body.model not in self._models:
            return model_not_found()
        if await self._load.is_full(caller.account_id):
            return _queue_full("account_queue_full", "This account")
        return await self._eligibility.refusal(caller)

    async def _known(self, accept: Accept) -> KnownKey | None:
        if accept.idempotency_key is None:
            return None
        return await self._requests.select_request_by_key(accept.session_id, accept.account_id, accept.idempotency_key)

    async def _replay(self, accept: Accept, known: KnownKey) -> Request:
        if known.fingerprint != accept.fingerprint:
            raise idempotency_key_reused()
        request = await self._requests.select_request(known.request_id, accept.account_id)
        assert request is not None, "requests are never deleted"
        _accepts.labels("replayed").inc()
        return request

    def _accept_of(
        self, caller: Caller, session_id: str, body: CreateRequest, raw_body: bytes, idempotency_key: str | None
    ) -> Accept:
        if body.text_bytes() > self._input_bytes_max:
            raise Problem(422, "input_too_large", f"The input may have at most {self._input_bytes_max} bytes of text.")
        return Accept(
            request_id=new_id("req"),
            session_id=session_id,
            account_id=caller.account_id,
            model=body.model,
            settings_json=body.settings_json(),
            input_json=body.items_json(),
            metadata_json=body.metadata_json(),
            idempotency_key=idempotency_key,
            fingerprint=fingerprint_of(raw_body),
            deadline_seconds=body.deadline_seconds or self._deadline_seconds,
            traceparent=tracing.current_traceparent(),
        )


def fingerprint_of(raw_body: bytes) -> bytes:
    """Of the bytes as they were sent: a body that means the same but is written otherwise is another body."""
    return hashlib.sha256(raw_body).digest()


def idempotency_key_reused() -> Problem:
    return Problem(
        422, "idempotency_key_reused", "This Idempotency-Key was used with a body of other bytes. Use a new one."
    )


def model_not_found() -> Problem:
    return Problem(422, "model_not_found", "There is no model of this name. `default` always exists.")


def _queue_full(code: str, who: str) -> Problem:
    detail = f"{who} has as many open requests as it may. Wait for one to end, or cancel one."
    return Problem(429, code, detail, headers={"Retry-After": str(_QUEUE_FULL_RETRY_SECONDS)})


def _as_request(accepted: Accepted, metadata: dict[str, str]) -> Request:
    turn = accepted.turn
    return Request(
        id=turn.request_id,
        account_id=turn.account_id,
        session_id=turn.session_id,
        seq=turn.seq,
        state="queued",
        model=turn.model,
        metadata=metadata,
        accepted_at=turn.accepted_at,
        deadline_at=turn.deadline_at,
        dispatched_at=turn.accepted_at if accepted.has_turn else None,
        waiting_on=None,
        started_at=None,
        cancel_requested_at=None,
        abandoned_at=None,
        abandon_code=None,
        ended_at=None,
        ahead=None if accepted.has_turn else accepted.ahead,
    )
