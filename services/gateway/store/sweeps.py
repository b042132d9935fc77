"""SQL of what must not be forgotten: owed publishes, silent requests, passed deadlines, stuck turns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from services.gateway.records import Abandoned, Due, Turn
from services.gateway.store.rows import ABANDON_COLUMNS, LOCKED_IN_ORDER, TURN_COLUMNS, abandoned_of, turn_of
from shared.postgres import Database, Record


class SweepStore:
    """A publish is swept once it has been owed for `owed_after`: a younger one is being paid by its maker."""

    def __init__(
        self,
        database: Database,
        *,
        check_after: timedelta,
        check_after_max: timedelta,
        grace: timedelta,
        owed_after: timedelta = timedelta(seconds=5),
    ) -> None:
        self._database = database
        self._check_after = check_after
        self._check_after_max = check_after_max
        self._grace = grace
        self._owed_after = owed_after

    async def select_requested_owed(self, limit: int) -> list[Turn]:
        return [turn_of(row) for row in await self._select_owed("requested_owed_at", limit)]

    async def select_cancels_owed(self, limit: int) -> list[Turn]:
        return [turn_of(row) for row in await self._select_owed("cancel_owed_at", limit)]

    async def select_abandons_owed(self, limit: int) -> list[Abandoned]:
        rows = await self._select_owed("abandon_owed_at", limit)
        return [abandoned for row in rows if (abandoned := abandoned_of(row))]

    async def update_requested_paid(self, request_ids: Sequence[str]) -> None:
        await self._update_paid("requested_owed_at", request_ids)

    async def update_cancels_paid(self, request_ids: Sequence[str]) -> None:
        await self._update_paid("cancel_owed_at", request_ids)

    async def update_abandons_paid(self, request_ids: Sequence[str]) -> None:
        await self._update_paid("abandon_owed_at", request_ids)

    async def update_due_checks_postponed(self, limit: int) -> list[Due]:
        """Claim open requests that somebody must look after now: the next look is later each time, but never passes
        over the instant at which the request is overdue.

        A second replica that wants the same rows waits for the first, and then finds that they are no longer due.
        """
        rows = await self._database.fetch(
            f"""
            UPDATE requests r
            SET checks = LEAST(r.checks + 1, 1000),
                next_check_at = LEAST(
                    now() + LEAST($2::interval * power(2, LEAST(r.checks, 10)), $3::interval),
                    CASE WHEN r.deadline_at + $4::interval > now() THEN r.deadline_at + $4::interval END
                )
            FROM sessions s
            WHERE s.id = r.session_id AND r.next_check_at <= now() AND r.id IN (
                SELECT q.id FROM requests q WHERE q.id IN (
                    SELECT id FROM requests WHERE next_check_at <= now() ORDER BY next_check_at LIMIT $1
                ) ORDER BY q.id FOR UPDATE
            )
            RETURNING {TURN_COLUMNS}, {ABANDON_COLUMNS}, r.dispatched_at IS NOT NULL AS was_dispatched,
                      r.deadline_at + CASE WHEN r.dispatched_at IS NULL THEN '0'::interval ELSE $4::interval END
                          <= now() AS is_expired,
                      r.cancel_requested_at IS NOT NULL AS cancel_requested
            """,  # noqa: S608 - the columns are this package's own
            limit,
            self._check_after,
            self._check_after_max,
            self._grace,
        )
        return [
            Due(turn_of(row), row["was_dispatched"], row["is_expired"], row["cancel_requested"], abandoned_of(row))
            for row in rows
        ]

    async def update_requests_abandoned_if_expired(self, request_ids: Sequence[str]) -> list[Abandoned]:
        """Propose the end of those that are past their deadline (and the grace, where they were handed over)."""
        rows = await self._database.fetch(
            f"""
            UPDATE requests r
            SET abandoned_at = now(), abandon_code = 'deadline_exceeded', abandon_owed_at = now(),
                next_check_at = now() + $2::interval
            FROM sessions s
            WHERE s.id = r.session_id AND r.id IN {LOCKED_IN_ORDER} AND r.ended_at IS NULL AND r.abandoned_at IS NULL
              AND r.deadline_at + CASE WHEN r.dispatched_at IS NULL THEN '0'::interval ELSE $3::interval END <= now()
            RETURNING {TURN_COLUMNS}, {ABANDON_COLUMNS}
            """,  # noqa: S608
            list(request_ids),
            self._check_after,
            self._grace,
        )
        return [abandoned for row in rows if (abandoned := abandoned_of(row))]

    async def update_requests_too_large_if_owed(self, request_ids: Sequence[str]) -> list[Abandoned]:
        """Propose the end of those whose command can never be published; one that was published before is not one."""
        rows = await self._database.fetch(
            f"""
            UPDATE requests r
            SET abandoned_at = now(), abandon_code = 'input_too_large', abandon_owed_at = now(),
                requested_owed_at = NULL, next_check_at = now() + $2::interval
            FROM sessions s
            WHERE s.id = r.session_id AND r.id IN {LOCKED_IN_ORDER} AND r.ended_at IS NULL AND r.abandoned_at IS NULL
              AND r.requested_owed_at IS NOT NULL
            RETURNING {TURN_COLUMNS}, {ABANDON_COLUMNS}
            """,  # noqa: S608
            list(request_ids),
            self._check_after,
        )
        return [abandoned for row in rows if (abandoned := abandoned_of(row))]

    async def select_sessions_stuck(self, limit: int) -> list[str]:
        """Sessions in which somebody waits although nobody who is open has the turn."""
        rows = await self._database.fetch(
            """
            SELECT DISTINCT q.session_id FROM requests q JOIN sessions s ON s.id = q.session_id
            LEFT JOIN requests holder ON holder.id = s.running
            WHERE q.next_check_at IS NOT NULL AND q.dispatched_at IS NULL AND q.cancel_requested_at IS NULL
              AND q.abandoned_at IS NULL AND (holder.id IS NULL OR holder.ended_at IS NOT NULL)
            LIMIT $1
            """,
            limit,
        )
        return [row["session_id"] for row in rows]

    async def select_overdue_count(self) -> int:
        """Open requests past their deadline and the grace: 0 unless something is broken."""
        count: int = await self._database.fetchval(
            "SELECT count(*) FROM requests WHERE next_check_at IS NOT NULL AND deadline_at + $1::interval < now()",
            self._grace,
        )
        return count

    async def _select_owed(self, column: str, limit: int) -> list[Record]:
        return await self._database.fetch(
            f"""
            SELECT {TURN_COLUMNS}, {ABANDON_COLUMNS} FROM requests r JOIN sessions s ON s.id = r.session_id
            WHERE r.{column} < now() - $2::interval ORDER BY r.{column} LIMIT $1
            """,  # noqa: S608
            limit,
            self._owed_after,
        )

    async def _update_paid(self, column: str, request_ids: Sequence[str]) -> None:
        await self._database.execute(
            f"""
            UPDATE requests r SET {column} = NULL WHERE r.id IN {LOCKED_IN_ORDER} AND r.{column} IS NOT NULL
            """,  # noqa: S608
            list(request_ids),
        )
