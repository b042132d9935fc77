"""SQL over accounts, API keys, and the copy of eligibility."""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.records import Account, Caller, Key
from services.gateway.store.rows import AFTER_ALL_IDS
from shared.contracts.billing import Eligibility, EligibilityChanged
from shared.group_read import GroupRead
from shared.postgres import Database, Record


class AccountStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._callers = GroupRead("callers", self._select_callers_unless_revoked)

    async def insert_account(self, account_id: str, name: str) -> Account:
        row = await self._database.fetchrow(
            "INSERT INTO accounts (id, name) VALUES ($1, $2) RETURNING id, name, created_at", account_id, name
        )
        assert row is not None
        return Account(**dict(row))

    async def select_account(self, account_id: str) -> Account | None:
        row = await self._database.fetchrow("SELECT id, name, created_at FROM accounts WHERE id = $1", account_id)
        return Account(**dict(row)) if row else None

    async def select_accounts_before(self, before_id: str | None, limit: int) -> list[Account]:
        rows = await self._database.fetch(
            """
            SELECT id, name, created_at FROM accounts WHERE id < $1 ORDER BY id DESC LIMIT $2
            """,
            before_id or AFTER_ALL_IDS,
            limit,
        )
        return [Account(**dict(row)) for row in rows]

    async def insert_key(
        self, key_id: str, account_id: str | None, *, name: str | None, secret_hash: bytes, last_four: str
    ) -> Key:
        """A key of the account, or an administrator's where there is no account."""
        row = await self._database.fetchrow(
            """
            INSERT INTO api_keys (id, account_id, scope, name, secret_hash, last_four)
            VALUES ($1, $2, CASE WHEN $2::text IS NULL THEN 'admin' ELSE 'account' END, $3, $4, $5)
            RETURNING id, account_id, scope, name, last_four, created_at, revoked_at
            """,
            key_id,
            account_id,
            name,
            secret_hash,
            last_four,
        )
        assert row is not None
        return Key(**dict(row))

    async def select_keys_before(self, account_id: str, before_id: str | None, limit: int) -> list[Key]:
        rows = await self._database.fetch(
            """
            SELECT id, account_id, scope, name, last_four, created_at, revoked_at FROM api_keys
            WHERE account_id BETWEEN $1 AND $1 AND id < $2 ORDER BY account_id DESC, id DESC LIMIT $3
            """,
            account_id,
            before_id or AFTER_ALL_IDS,
            limit,
        )
        return [Key(**dict(row)) for row in rows]

    async def update_key_revoked(self, key_id: str, account_id: str | None = None) -> bool:
        """Whether there is such a key (of this account, where one is given). A second time changes nothing."""
        tag = await self._database.execute(
            """
            UPDATE api_keys SET revoked_at = COALESCE(revoked_at, now())
            WHERE id = $1 AND ($2::text IS NULL OR account_id = $2)
            """,
            key_id,
            account_id,
        )
        return tag == "UPDATE 1"

    async def select_caller_unless_revoked(self, secret_hash: bytes) -> Caller | None:
        """Read together with the callers who come at the same time."""
        return await self._callers.get(secret_hash)

    async def _select_callers_unless_revoked(self, secret_hashes: Sequence[bytes]) -> dict[bytes, Caller]:
        rows = await self._database.fetch(
            """
            SELECT k.secret_hash, k.id AS key_id, k.scope, COALESCE(k.account_id, '') AS account_id, e.eligibility
            FROM api_keys k LEFT JOIN eligibilities e ON e.account_id = k.account_id
            WHERE k.secret_hash = ANY($1) AND k.revoked_at IS NULL
            """,
            secret_hashes,
        )
        return {
            row["secret_hash"]: Caller(row["key_id"], row["scope"], row["account_id"], _eligibility(row))
            for row in rows
        }

    async def select_eligibility(self, account_id: str) -> Eligibility | None:
        row = await self._database.fetchrow("SELECT eligibility FROM eligibilities WHERE account_id = $1", account_id)
        return _eligibility(row) if row else None

    async def insert_eligibilities_if_newer(self, changes: Sequence[EligibilityChanged]) -> set[str]:
        """The accounts that exist here. `changes` has an account once; an older sequence changes nothing."""
        rows = await self._database.fetch(
            """
            WITH incoming AS (
                SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::timestamptz[])
                    AS i(account_id, sequence, eligibility, decided_at)
            ), known AS (
                SELECT i.* FROM incoming i JOIN accounts a ON a.id = i.account_id ORDER BY i.account_id
            ), stored AS (
                INSERT INTO eligibilities AS e (account_id, sequence, eligibility, decided_at)
                SELECT account_id, sequence, eligibility::jsonb, decided_at FROM known
                ON CONFLICT (account_id) DO UPDATE
                SET sequence = EXCLUDED.sequence, eligibility = EXCLUDED.eligibility, decided_at = EXCLUDED.decided_at
                WHERE e.sequence < EXCLUDED.sequence
            )
            SELECT account_id FROM known
            """,
            [change.account_id for change in changes],
            [change.sequence for change in changes],
            [change.eligibility.model_dump_json() for change in changes],
            [change.decided_at for change in changes],
        )
        return {row["account_id"] for row in rows}


def _eligibility(row: Record) -> Eligibility | None:
    text = row["eligibility"]
    return None if text is None else Eligibility.model_validate_json(text)
