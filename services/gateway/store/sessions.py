"""SQL over sessions, but for the turn (turns.py)."""

from __future__ import annotations

from pydantic_core import from_json

from services.gateway.records import NewSession, Session
from services.gateway.store.rows import AFTER_ALL_IDS
from shared.postgres import Database, Record

_COLUMNS = """
    id, instructions, model, metadata, running IS NOT NULL AS is_running, open_requests, created_at, fingerprint
"""


class SessionStore:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_session_unless_key_used(self, new: NewSession) -> Session | None:
        """None where the account has used the idempotency key already."""
        row = await self._database.fetchrow(
            f"""
            INSERT INTO sessions (id, account_id, instructions, model, metadata, idempotency_key, fingerprint)
            VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7)
            ON CONFLICT (account_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
            RETURNING {_COLUMNS}
            """,  # noqa: S608 - the columns are this file's own
            new.id,
            new.account_id,
            new.instructions,
            new.model,
            new.metadata_json,
            new.idempotency_key,
            new.fingerprint,
        )
        return _session(row) if row else None

    async def select_session_by_key_unless_deleted(self, account_id: str, idempotency_key: str) -> Session | None:
        row = await self._database.fetchrow(
            f"""
            SELECT {_COLUMNS} FROM sessions
            WHERE account_id = $1 AND idempotency_key = $2 AND deleted_at IS NULL
            """,  # noqa: S608
            account_id,
            idempotency_key,
        )
        return _session(row) if row else None

    async def select_session_unless_deleted(self, session_id: str, account_id: str) -> Session | None:
        row = await self._database.fetchrow(
            f"""
            SELECT {_COLUMNS} FROM sessions WHERE id = $1 AND account_id = $2 AND deleted_at IS NULL
            """,  # noqa: S608
            session_id,
            account_id,
        )
        return _session(row) if row else None

    async def select_sessions_before(self, account_id: str, before_id: str | None, limit: int) -> list[Session]:
        rows = await self._database.fetch(
            f"""
            SELECT {_COLUMNS} FROM sessions
            WHERE account_id BETWEEN $1 AND $1 AND deleted_at IS NULL AND id < $2
            ORDER BY account_id, id DESC LIMIT $3
            """,  # noqa: S608
            account_id,
            before_id or AFTER_ALL_IDS,
            limit,
        )
        return [_session(row) for row in rows]

    async def update_session_deleted(self, session_id: str, account_id: str) -> bool:
        """Whether there was such a session. Its open requests go on."""
        tag = await self._database.execute(
            "UPDATE sessions SET deleted_at = now() WHERE id = $1 AND account_id = $2 AND deleted_at IS NULL",
            session_id,
            account_id,
        )
        return tag == "UPDATE 1"


def _session(row: Record) -> Session:
    return Session(**{**row, "metadata": from_json(row["metadata"])})
