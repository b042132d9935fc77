"""SQL that reads requests as their owners see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

from services.gateway.records import KnownKey, Request
from services.gateway.request_state import State
from services.gateway.store.rows import AFTER_ALL_IDS, LOCKED_IN_ORDER, REQUEST_COLUMNS, request_of
from shared.contracts.billing import Charge
from shared.group_read import GroupRead
from shared.postgres import Database

_AFTER_ALL_SEQS: Final = 2**31 - 1

Owned: TypeAlias = tuple[str, str]
"""The id of a request, and the account that asks for it."""

# LIMIT keeps the account out of the search: a plan made while the table is empty would look for the id among all
# requests of the account, and stay so for ever. The inner SELECTs hide how many are wanted, so that the plan is made
# once: for a few, one of their own would look cheaper each time, and take longer to make than to carry out.
_WANTED = """
    unnest((SELECT $1::text[]), (SELECT $2::text[])) AS w(id, account_id)
    JOIN LATERAL (SELECT * FROM requests WHERE id = w.id LIMIT 1) r ON r.account_id = w.account_id
"""


class RequestStore:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._requests = GroupRead("requests", self._select_requests)
        self._existing = GroupRead("requests_existing", self._select_existing)
        self._open_counts = GroupRead("open_requests", self._select_open_counts)

    async def select_request(self, request_id: str, account_id: str) -> Request | None:
        """Read together with what others ask for at the same time."""
        return await self._requests.get((request_id, account_id))

    async def select_request_exists(self, request_id: str, account_id: str) -> bool:
        return await self._existing.get((request_id, account_id)) or False

    async def _select_requests(self, wanted: Sequence[Owned]) -> dict[Owned, Request]:
        # Whoever waits comes after the request that has the turn, so the count starts there and stays short.
        rows = await self._database.fetch(
            f"""
            SELECT {REQUEST_COLUMNS}, r.result, r.charge,
                   CASE WHEN r.state = 'queued' AND r.dispatched_at IS NULL THEN (
                       SELECT count(*) FROM requests b
                       WHERE b.session_id = r.session_id AND b.seq < r.seq AND b.ended_at IS NULL
                         AND b.seq >= COALESCE((SELECT h.seq FROM sessions s JOIN requests h ON h.id = s.running
                                                WHERE s.id = r.session_id), 1)
                   ) END AS ahead
            FROM {_WANTED}
            """,  # noqa: S608 - the columns are this package's own
            [request_id for request_id, _ in wanted],
            [account_id for _, account_id in wanted],
        )
        return {(row["id"], row["account_id"]): request_of(row) for row in rows}

    async def _select_existing(self, wanted: Sequence[Owned]) -> dict[Owned, Literal[True]]:
        rows = await self._database.fetch(
            f"SELECT r.id, r.account_id FROM {_WANTED}",  # noqa: S608
            [request_id for request_id, _ in wanted],
            [account_id for _, account_id in wanted],
        )
        return {(row["id"], row["account_id"]): True for row in rows}

    async def select_request_by_key(self, session_id: str, account_id: str, idempotency_key: str) -> KnownKey | None:
        row = await self._database.fetchrow(
            """
            SELECT id, fingerprint FROM requests WHERE session_id = $1 AND account_id = $2 AND idempotency_key = $3
            """,
            session_id,
            account_id,
            idempotency_key,
        )
        return KnownKey(row["id"], row["fingerprint"]) if row else None

    async def select_requests_before(
        self, account_id: str, before_id: str | None, limit: int, state: State | None
    ) -> list[Request]:
        # Two statements, so that each keeps a plan that walks one index. BETWEEN is no equality to the planner: with
        # `=` it may walk back through the ids of all accounts until it has met enough of this one, which may have none.
        guard, order = ("TRUE", "") if state is None else ("r.state BETWEEN $4 AND $4", "r.state,")
        rows = await self._database.fetch(
            f"""
            SELECT {REQUEST_COLUMNS} FROM requests r
            WHERE r.account_id BETWEEN $1 AND $1 AND {guard} AND r.id < $2
            ORDER BY r.account_id, {order} r.id DESC LIMIT $3
            """,  # noqa: S608
            account_id,
            before_id or AFTER_ALL_IDS,
            limit,
            *([] if state is None else [state]),
        )
        return [request_of(row) for row in rows]

    async def select_session_requests_before(
        self, session_id: str, before_seq: int | None, limit: int, state: State | None
    ) -> list[Request]:
        rows = await self._database.fetch(
            f"""
            SELECT {REQUEST_COLUMNS} FROM requests r
            WHERE r.session_id = $1 AND r.seq < $2 AND ($4::text IS NULL OR r.state = $4)
            ORDER BY r.seq DESC LIMIT $3
            """,  # noqa: S608
            session_id,
            before_seq or _AFTER_ALL_SEQS,
            limit,
            state,
        )
        return [request_of(row) for row in rows]

    async def select_open_request_count(self, account_id: str, count_max: int) -> int:
        """How many requests of the account have not ended; counts no further than `count_max`. Counted once for all who
        ask at the same time: an account's first requests may come in a burst."""
        return await self._open_counts.get((account_id, count_max)) or 0

    async def _select_open_counts(self, wanted: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        rows = await self._database.fetch(
            """
            SELECT w.account_id, w.count_max, (
                SELECT count(*) FROM (
                    SELECT FROM requests r
                    WHERE r.account_id = w.account_id AND r.state IN ('queued', 'in_progress') LIMIT w.count_max
                ) open
            ) AS count
            FROM unnest($1::text[], $2::integer[]) AS w(account_id, count_max)
            """,
            [account_id for account_id, _ in wanted],
            [count_max for _, count_max in wanted],
        )
        return {(row["account_id"], row["count_max"]): row["count"] for row in rows}

    async def update_charges_if_missing(self, charges: Sequence[Charge]) -> None:
        await self._database.execute(
            f"""
            UPDATE requests r SET charge = i.charge::jsonb
            FROM unnest($1::text[], $2::text[]) AS i(id, charge)
            WHERE r.id = i.id AND r.ended_at IS NOT NULL AND r.charge IS NULL AND r.id IN {LOCKED_IN_ORDER}
            """,  # noqa: S608
            [charge.request_id for charge in charges],
            [charge.model_dump_json() for charge in charges],
        )
