"""Sessions: begin, show, list, end."""

from __future__ import annotations

from collections.abc import Collection

from services.gateway.admission import fingerprint_of, idempotency_key_reused, model_not_found
from services.gateway.records import NewSession, Session
from services.gateway.schemas import CreateSession
from services.gateway.store import SessionStore
from shared.errors import not_found
from shared.ids import new_id


class Sessions:
    def __init__(self, store: SessionStore, *, models: Collection[str]) -> None:
        self._store = store
        self._models = models

    async def create(
        self, account_id: str, body: CreateSession, raw_body: bytes, idempotency_key: str | None
    ) -> tuple[Session, bool]:
        """The session, and whether it is the replay of an earlier one."""
        if body.model not in self._models:
            raise model_not_found()
        fingerprint = fingerprint_of(raw_body) if idempotency_key is not None else None
        new = NewSession(
            id=new_id("ses"),
            account_id=account_id,
            instructions=body.instructions,
            model=body.model,
            metadata_json=body.metadata_json(),
            idempotency_key=idempotency_key,
            fingerprint=fingerprint,
        )
        session = await self._store.insert_session_unless_key_used(new)
        if session is not None or idempotency_key is None:
            assert session is not None
            return session, False
        earlier = await self._store.select_session_by_key_unless_deleted(account_id, idempotency_key)
        if earlier is None:
            raise not_found("session")
        if earlier.fingerprint != fingerprint:
            raise idempotency_key_reused()
        return earlier, True

    async def get(self, session_id: str, account_id: str) -> Session:
        session = await self._store.select_session_unless_deleted(session_id, account_id)
        if session is None:
            raise not_found("session")
        return session

    async def list_before(self, account_id: str, before_id: str | None, limit: int) -> list[Session]:
        return await self._store.select_sessions_before(account_id, before_id, limit)

    async def delete(self, session_id: str, account_id: str) -> None:
        """No new requests; those that were accepted go on to their end."""
        if not await self._store.update_session_deleted(session_id, account_id):
            raise not_found("session")
