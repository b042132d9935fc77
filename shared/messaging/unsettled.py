"""Which deliveries still wait for their verdict, so that one frame can tell the broker about many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from aio_pika.abc import AbstractIncomingMessage

_Channel: TypeAlias = Any


class Unsettled:
    """Deliveries of one consumer. Their tags count within a channel, and a reconnect makes a new one."""

    def __init__(self) -> None:
        self._tags: dict[_Channel, dict[int, None]] = {}
        self._channels: dict[AbstractIncomingMessage, _Channel] = {}

    def add(self, incoming: AbstractIncomingMessage) -> None:
        """As it arrives: later, its channel may be closed, and is not told any more."""
        self._channels[incoming] = incoming.channel
        self._tags.setdefault(incoming.channel, {})[_tag(incoming)] = None

    def __contains__(self, incoming: AbstractIncomingMessage) -> bool:
        return incoming in self._channels

    def take(self, deliveries: Sequence[AbstractIncomingMessage]) -> Iterator[tuple[AbstractIncomingMessage, bool]]:
        """Those to ack so that all these are, each with whether its ack stands for every older one too: one for all
        where nothing older waits, else each for itself. Each counts as settled from its turn on and not before: an ack
        of others that is sent between two of these must not stand for what has an ack of its own to come."""
        by_channel: dict[_Channel, list[AbstractIncomingMessage]] = {}
        for delivery in sorted(deliveries, key=_tag):
            by_channel.setdefault(self._channels[delivery], []).append(delivery)
        for channel, members in by_channel.items():
            tags = [_tag(member) for member in members]
            if list(islice(self._tags[channel], len(tags))) == tags:
                self._settle(channel, *members)
                yield members[-1], True
                continue
            for member in members:
                self._settle(channel, member)
                yield member, False

    def _settle(self, channel: _Channel, *deliveries: AbstractIncomingMessage) -> None:
        tags = self._tags[channel]
        for delivery in deliveries:
            del self._channels[delivery], tags[_tag(delivery)]
        if not tags:
            del self._tags[channel]


def _tag(incoming: AbstractIncomingMessage) -> int:
    assert incoming.delivery_tag is not None
    return incoming.delivery_tag
