"""Putting a parked message back on the queue that it came from."""

from __future__ import annotations

import json
import uuid

import aio_pika

from shared.messaging.broker import Broker
from shared.messaging.parking import Parking


async def replay(parking: Parking, broker: Broker, parked_id: int) -> bool:
    """Publish it to its queue only, confirmed, then mark the row; False where there is no such row. A crash between
    the two repeats it, which its handler bears like any duplicate."""
    row = await parking.select_for_replay(parked_id)
    if row is None:
        return False
    channel = await broker.publishing_channel(confirms=True)
    try:
        await channel.default_exchange.publish(
            aio_pika.Message(
                row["body"],
                headers=json.loads(row["headers"]),
                content_type=row["content_type"],
                message_id=uuid.uuid4().hex,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            ),
            routing_key=row["queue"],
            timeout=5,
        )
    finally:
        await channel.close()
    await parking.update_replayed(parked_id, row["times_parked"])
    return True
