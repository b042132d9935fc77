"""Parked messages: what could not be handled, kept with its reason in the service's own database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from aio_pika.abc import AbstractIncomingMessage

from shared.metrics import counter, gauge
from shared.postgres import Database, Record

_waiting = gauge("parked_messages", "Parked messages that wait for an operator, by queue.", ("queue",))
_parked = counter("messages_parked", "Messages parked, by queue and reason code.", ("queue", "reason"))


@dataclass(frozen=True)
class ParkedMessage:
    """A parked message as a list shows it: lengths and hashes, no content."""

    id: int
    queue: str
    reason: str
    type: str | None
    ce_id: str | None
    body_bytes: int
    body_sha256: str
    parked_at: datetime
    times_parked: int
    replayed_at: datetime | None


class Parking:
    """The table `parked_messages`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert(self, incoming: AbstractIncomingMessage, queue: str, reason: str) -> None:
        """Park one delivery. The same message parked again only counts: a crash before the ack repeats this."""
        ce_id = _text(incoming.headers.get("ce-id"))
        digest = hashlib.sha256(f"{ce_id}\0{reason}\0".encode() + incoming.body).hexdigest()
        await self._database.execute(
            """
            INSERT INTO parked_messages
                (queue, digest, reason, type, ce_id, routing_key, content_type, headers, body, body_sha256)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, $10)
            ON CONFLICT (queue, digest)
            DO UPDATE SET times_parked = parked_messages.times_parked + 1, replayed_at = NULL
            """,
            queue,
            digest,
            reason[:500],
            _text(incoming.headers.get("ce-type")),
            ce_id,
            _text(incoming.routing_key),
            _text(incoming.content_type),
            _headers_json(incoming),
            incoming.body,
            hashlib.sha256(incoming.body).hexdigest(),
        )
        _parked.labels(queue, reason.partition(":")[0]).inc()

    async def select_page(self, *, after_id: int = 0, limit: int = 100) -> list[ParkedMessage]:
        rows = await self._database.fetch(
            """
            SELECT id, queue, reason, type, ce_id, octet_length(body) AS body_bytes, body_sha256, parked_at,
                   times_parked, replayed_at
            FROM parked_messages WHERE id > $1 AND replayed_at IS NULL ORDER BY id LIMIT $2
            """,
            after_id,
            limit,
        )
        return [ParkedMessage(**dict(row)) for row in rows]

    async def count(self, queues: Iterable[str]) -> None:
        """Tell the operator how many wait, also of those that were parked before this process began. Of the `queues`
        that are consumed here also that none does: an increase needs the zero before the first."""
        rows = await self._database.fetch(
            "SELECT queue, count(*) AS count FROM parked_messages WHERE replayed_at IS NULL GROUP BY queue"
        )
        counts = dict.fromkeys(queues, 0) | {row["queue"]: row["count"] for row in rows}
        _waiting.clear()
        for queue, count in counts.items():
            _waiting.labels(queue).set(count)

    async def select_for_replay(self, parked_id: int) -> Record | None:
        """Queue, headers, content type, body and times parked of one message."""
        return await self._database.fetchrow(
            "SELECT queue, content_type, headers, body, times_parked FROM parked_messages WHERE id = $1", parked_id
        )

    async def update_replayed(self, parked_id: int, times_parked: int) -> None:
        """A service may have parked it again before this mark: then it waits, and is not marked."""
        await self._database.execute(
            "UPDATE parked_messages SET replayed_at = now() WHERE id = $1 AND times_parked = $2",
            parked_id,
            times_parked,
        )

    async def delete(self, parked_id: int) -> bool:
        return await self._database.execute("DELETE FROM parked_messages WHERE id = $1", parked_id) == "DELETE 1"


def _headers_json(incoming: AbstractIncomingMessage) -> str:
    known = {name: value for name, value in incoming.headers.items() if not name.startswith("x-")}
    text = json.dumps(known, default=str, ensure_ascii=False).encode(errors="replace").decode()
    return text.replace("\\u0000", "\\ufffd")


def _text(value: object) -> str | None:
    return str(value).replace("\0", "\N{REPLACEMENT CHARACTER}")[:500] if value is not None else None
