"""A seeded load through the public API: many sessions at once, clients of every manner, each post's fate known."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from deploy.local.seed import Account
from tests.support.faults.client import Client, Event, GaveUp, Seen, Trouble

__all__ = ["Event", "Load", "Post", "Seen", "Tempo"]

IDLE_SECONDS = 3.0
"""For how long a connection is kept unused: less than a replica that goes leaves it open."""


@dataclass(frozen=True)
class Tempo:
    """How much goes on at a time, and how long requests may take."""

    sessions: int = 40
    """Users at a time; each begins one conversation after the other."""
    conversations: int | None = None
    """Of each user; without it, until the load is stopped."""
    models: tuple[str, ...] = ("default",)
    """In turn, user by user."""
    turns_min: int = 1
    turns_max: int = 6
    deadline_seconds: int = 120
    short_deadlines: float = 0.02
    """How often a request gets a few seconds only."""
    cancels: float = 0.1
    think_seconds_max: float = 0.3


@dataclass
class Post:
    """One thing a user wanted, sent under one Idempotency-Key however often."""

    marker: str
    account_id: str
    session_id: str
    key: str
    text: str
    deadline_seconds: int
    request_ids: set[str] = field(default_factory=set)
    refusals: list[tuple[int, str]] = field(default_factory=list)
    """Status and code of answers that said no."""
    tries: int = 0
    replays: int = 0
    cancels: int = 0


class Load:
    """`run` begins new sessions until `stop`; every request that was accepted is then watched to its end."""

    def __init__(
        self, name: str, seed: int, gateways: Sequence[str], accounts: Sequence[Account], strangers: Sequence[Account]
    ) -> None:
        self.name = name
        self.posts: list[Post] = []
        self.seen: list[Seen] = []
        self.problems: list[str] = []
        """What no client should meet, however many faults there are."""
        self.account_ids = frozenset(account.id for account in (*accounts, *strangers))
        self._seed = seed
        self._gateways = gateways
        self._accounts = accounts
        self._strangers = strangers
        self._clients: list[Client] = []
        self._stopping = asyncio.Event()
        self._changed = asyncio.Condition()
        self._ended = 0

    @property
    def accepted(self) -> int:
        return sum(bool(post.request_ids) for post in self.posts)

    @property
    def ended(self) -> int:
        return self._ended

    @property
    def trouble(self) -> Trouble:
        clients = [client.trouble for client in self._clients]
        return Trouble(
            sum(trouble.lost_connections for trouble in clients),
            sum(trouble.server_errors for trouble in clients),
            sum(trouble.dropped_by_us for trouble in clients),
        )

    def stop(self) -> None:
        self._stopping.set()

    async def until(self, holds: Callable[[Load], bool], *, seconds: float = 120) -> None:
        """Return once the load has come so far."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: holds(self))

    async def run(self, tempo: Tempo) -> None:
        """Everything until the last request that was accepted has ended, and every log has been read by two."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as group:
            # The library would send a GET again by itself, and nobody would know that a connection was lost.
            http._retry_connection = False
            for number in range(tempo.sessions):
                group.create_task(self._user(http, number, tempo))

    async def _user(self, http: aiohttp.ClientSession, number: int, tempo: Tempo) -> None:
        """One session after the other, each with a random number of turns."""
        rng = random.Random(f"{self._seed}:{self.name}:{number}")
        stranger = self._strangers and rng.random() < 0.05
        account = rng.choice(self._strangers if stranger else self._accounts)
        client = Client(http, self._gateways, account, rng)
        self._clients.append(client)
        conversation = 0
        while not self._stopping.is_set() and conversation != tempo.conversations:
            conversation += 1
            user = _User(self, client, rng, f"{self.name}-{number}-{conversation}", tempo)
            user.model = tempo.models[number % len(tempo.models)]
            try:
                await user.converse(self._stopping)
            except (GaveUp, AssertionError) as error:
                self.problems.append(f"{account.id}, session {user.name}: {error}")
            if stranger:
                return

    async def note_end(self) -> None:
        self._ended += 1
        await self.note()

    async def note(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class _User:
    """A person with one session, and habits drawn from the seed."""

    def __init__(self, load: Load, client: Client, rng: random.Random, name: str, tempo: Tempo) -> None:
        self._load = load
        self._client = client
        self._rng = rng
        self.name = name
        self.model = "default"
        self._tempo = tempo
        self._watching: list[asyncio.Task[None]] = []

    async def converse(self, stopping: asyncio.Event) -> None:
        body = {"metadata": {"user": self.name}, "model": self.model}
        reply = await self._client.post("/v1/sessions", body, self.name)
        assert reply.status == 201, reply
        session_id: str = reply.body["id"]
        try:
            for turn in range(1, self._rng.randint(self._tempo.turns_min, self._tempo.turns_max) + 1):
                await self._turn(session_id, turn)
                if stopping.is_set():
                    break
        except asyncio.CancelledError:
            # The load is dropped; else its watchers would go on until their requests end, however long that takes.
            for watching in self._watching:
                watching.cancel()
            raise
        finally:
            await asyncio.gather(*self._watching)

    async def _turn(self, session_id: str, turn: int) -> None:
        post = self._new_post(session_id, turn)
        self._load.posts.append(post)
        await self._send(post, copies=self._rng.choice((1, 1, 1, 2, 3)))
        await self._load.note()
        if not post.request_ids:
            return
        request_id = next(iter(post.request_ids))
        watching = asyncio.create_task(self._watch(post, request_id))
        self._watching.append(watching)
        if self._rng.random() < self._tempo.cancels:
            await self._cancel(post, request_id)
        if self._rng.random() < 0.6:
            await asyncio.shield(watching)
        await asyncio.sleep(self._rng.uniform(0, self._tempo.think_seconds_max))

    def _new_post(self, session_id: str, turn: int) -> Post:
        marker = f"{self.name}-{turn}"
        short = self._rng.random() < self._tempo.short_deadlines
        return Post(
            marker=marker,
            account_id=self._client.account.id,
            session_id=session_id,
            key=f"key-{marker}",
            text=f"Turn {turn} of [[{marker}]]",
            deadline_seconds=self._rng.randint(2, 6) if short else self._tempo.deadline_seconds,
        )

    async def _send(self, post: Post, *, copies: int) -> None:
        """The same key at the same time, as from two tabs or an impatient proxy."""
        body = {"input": post.text, "deadline_seconds": post.deadline_seconds}
        path = f"/v1/sessions/{post.session_id}/requests"
        replies = await asyncio.gather(*(self._client.post(path, body, post.key) for _ in range(copies)))
        for reply in replies:
            post.tries += reply.tries
            post.replays += reply.replayed
            if reply.status == 202:
                post.request_ids.add(reply.body["id"])
            else:
                post.refusals.append((reply.status, str((reply.body or {}).get("code"))))

    async def _cancel(self, post: Post, request_id: str) -> None:
        post.cancels += 1
        reply = await self._client.call("POST", f"/v1/requests/{request_id}/cancel")
        assert reply.status == 200, reply

    async def _watch(self, post: Post, request_id: str) -> None:
        """Two readers, each in a manner of its own; and now and then one who comes late."""
        await asyncio.gather(*(manner(seen) for manner, seen in self._readers(request_id)))
        await self._load.note_end()
        if self._rng.random() < 0.5:
            return
        late = self._seen(request_id, "late")
        await self._client.follow_log(late)
        await self._client.watch_snapshot(late)
        await self._look_for_others(request_id)

    def _readers(self, request_id: str) -> list[tuple[Callable[[Seen], Coroutine[Any, Any, None]], Seen]]:
        client = self._client
        drop = self._rng.choice((0.0, 0.0, 0.4))
        log = self._rng.choice(
            (
                ("pages", lambda seen: client.follow_log(seen, drop=drop)),
                ("pages", lambda seen: client.follow_log(seen, drop=drop)),
                ("stream", lambda seen: client.stream_log(seen, drop=drop)),
            )
        )
        return [
            (client.watch_snapshot, self._seen(request_id, "snapshots")),
            (log[1], self._seen(request_id, log[0])),
        ]

    def _seen(self, request_id: str, reader: str) -> Seen:
        seen = Seen(request_id, reader)
        self._load.seen.append(seen)
        return seen

    async def _look_for_others(self, request_id: str) -> None:
        """What belongs to another account answers as if it were not there."""
        foreign = [
            next(iter(post.request_ids))
            for post in self._load.posts[-20:]
            if post.request_ids and post.account_id != self._client.account.id
        ]
        if foreign and self._rng.random() < 0.1:
            found = await self._client.call("GET", f"/v1/requests/{self._rng.choice(foreign)}")
            if found.status != 404:
                self._load.problems.append(f"{self._client.account.id} was shown {found.body} of another account")
