"""Faults at random, all drawn from one seed: what is broken, when, for how long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tests.support.faults.points import POINTS
from tests.support.faults.proxy import Mode, Shape
from tests.support.faults.world import LEASE_SECONDS, PEERS, World

POINT_SECONDS = 8.0
RETRY_AFTER_SECONDS = 3
SLOW = {"kind": "ok", "words": 30, "between_chunks_ms": 40}
MIXES: tuple[tuple[tuple[float, dict[str, Any]], ...], ...] = (
    (),
    ((0.3, SLOW),),
    ((0.08, {"kind": "status", "status": 500}), (0.05, {"kind": "drop"}), (0.2, SLOW)),
    ((0.1, {"kind": "cut", "after_chunks": 3}), (0.05, {"kind": "bad_json", "after_chunks": 2}), (0.2, SLOW)),
    ((0.02, {"kind": "stall", "after_chunks": 2}), (0.05, {"kind": "stream_error", "after_chunks": 2})),
    ((0.01, {"kind": "status", "status": 429, "retry_after_seconds": RETRY_AFTER_SECONDS}), (0.2, SLOW)),
    ((0.1, {"kind": "eof", "after_chunks": 3}), (0.05, {"kind": "empty"}), (0.05, {"kind": "bad_framing"})),
)


class _Busy(Exception):
    """Somebody else is breaking it already."""


class Monkey:
    """`once` breaks one thing, says so, and mends it again."""

    def __init__(
        self,
        world: World,
        seed: str,
        put_mix: Callable[[dict[str, Any]], Awaitable[None]],
        *,
        busy: set[str],
        say: Callable[[str], None],
    ) -> None:
        """`busy` is shared by all monkeys of a world: two never break the same process at once."""
        self._world = world
        self._rng = random.Random(f"monkey:{seed}")
        self._put_mix = put_mix
        self._busy = busy
        self._say = say
        self.faults: tuple[Callable[[], Awaitable[None]], ...] = (
            self._kill,
            self._kill,
            self._roll,
            self._suspend,
            self._suspend_past_its_lease,
            self._die_at_a_point,
            self._die_at_a_point,
            self._bounce_rabbitmq,
            self._bounce_postgres,
            self._cut,
            self._half_open,
            self._freeze,
            self._refuse,
            self._slow,
            self._reset_after,
            self._change_provider,
        )

    async def once(self) -> None:
        with suppress(_Busy):
            await self._rng.choice(self.faults)()

    async def _kill(self) -> None:
        away = self._rng.uniform(0, 3)
        with self._one_of(self._world.names()) as name:
            self._say(f"kill {name}, away {away:.1f} s")
            await asyncio.to_thread(self._world.kill, name)
            await asyncio.sleep(away)
            await asyncio.to_thread(self._world.restart, name)

    async def _roll(self) -> None:
        with self._one_of(self._world.names()) as name:
            self._say(f"restart {name} in an orderly way")
            await asyncio.to_thread(self._world.terminate, name)
            await asyncio.to_thread(self._world.restart, name)

    async def _suspend(self) -> None:
        await self._stop_for(self._world.names(), self._rng.uniform(0.5, 4))

    async def _suspend_past_its_lease(self) -> None:
        await self._stop_for(self._world.names("orchestrator"), LEASE_SECONDS * 1.5)

    async def _stop_for(self, names: Sequence[str], seconds: float) -> None:
        with self._one_of(names) as name:
            self._say(f"suspend {name} for {seconds:.1f} s")
            await asyncio.to_thread(self._world.suspend, name)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self._world.resume, name)

    async def _die_at_a_point(self) -> None:
        service = self._rng.choice(list(POINTS))
        point, visit = self._rng.choice(POINTS[service]), self._rng.randint(1, 5)
        with self._one_of(self._world.names(service)) as name:
            await asyncio.to_thread(self._world.arm, name, f"{point}={visit}")
            died = await asyncio.to_thread(self._world.wait_for_death, name, POINT_SECONDS)
            self._say(f"{name} {'died' if died else 'was to die'} at {point}, visit {visit}")
            if not died:
                await asyncio.to_thread(self._world.kill, name)
            await asyncio.to_thread(self._world.restart, name)

    async def _bounce_rabbitmq(self) -> None:
        with self._one_of(["RabbitMQ"]):
            self._say("kill RabbitMQ")
            await asyncio.to_thread(self._world.bounce_rabbitmq, self._rng.uniform(0, 2))

    async def _bounce_postgres(self) -> None:
        with self._one_of(["PostgreSQL"]):
            self._say("kill PostgreSQL")
            await asyncio.to_thread(self._world.bounce_postgres, self._rng.uniform(0, 3))

    async def _cut(self) -> None:
        name, peer = self._any_link()
        cut = await asyncio.to_thread(self._world.links[name, peer].cut)
        self._say(f"cut {cut} connections of {name} to {peer}")

    async def _half_open(self) -> None:
        name, peer = self._any_link()
        seconds = self._rng.uniform(1, 6)
        proxy = self._world.links[name, peer]
        hit = await asyncio.to_thread(proxy.half_open)
        self._say(f"half open {hit} connections of {name} to {peer} for {seconds:.1f} s")
        await asyncio.sleep(seconds)
        await asyncio.to_thread(proxy.heal)

    async def _freeze(self) -> None:
        await self._mode("freeze", self._rng.uniform(0.5, 6))

    async def _refuse(self) -> None:
        await self._mode("refuse", self._rng.uniform(0.5, 4), cut=True)

    async def _mode(self, mode: Mode, seconds: float, *, cut: bool = False) -> None:
        name, peer = self._any_link()
        self._say(f"{mode} {name} to {peer} for {seconds:.1f} s")
        await asyncio.to_thread(self._world.during, name, peer, mode, seconds, cut=cut)

    async def _slow(self) -> None:
        shape = Shape(latency_seconds=self._rng.uniform(0.01, 0.15))
        await self._shaped(shape, f"{shape.latency_seconds * 1000:.0f} ms on every chunk", self._rng.uniform(1, 5))

    async def _reset_after(self) -> None:
        shape = Shape(reset_after_bytes=self._rng.randint(100, 50_000))
        await self._shaped(shape, f"reset after {shape.reset_after_bytes} bytes", self._rng.uniform(1, 4))

    async def _shaped(self, shape: Shape, what: str, seconds: float) -> None:
        name, peer = self._any_link()
        self._say(f"{what} of {name} to {peer} for {seconds:.1f} s")
        proxy = self._world.links[name, peer]
        await asyncio.to_thread(proxy.set_shape, shape)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(proxy.heal)

    async def _change_provider(self) -> None:
        mix = self._rng.choice(MIXES)
        self._say(f"the provider now has {len(mix)} faults")
        faults = [{"probability": probability, "behaviour": behaviour} for probability, behaviour in mix]
        await self._put_mix({"seed": self._rng.randint(1, 10**6), "faults": faults})

    @contextmanager
    def _one_of(self, names: Sequence[str]) -> Iterator[str]:
        name = self._rng.choice(names)
        if name in self._busy:
            raise _Busy
        self._busy.add(name)
        try:
            yield name
        finally:
            self._busy.discard(name)

    def _any_link(self) -> tuple[str, str]:
        name = self._rng.choice(self._world.names())
        return name, self._rng.choice(PEERS[name.partition("-")[0]])
