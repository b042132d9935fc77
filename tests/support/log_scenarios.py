"""Histories of one request's log: what a broker, lost workers and readers can do to it, and what must hold after it.

The same histories run against the pure model and against the real database.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hypothesis import strategies as st

from services.results.event_log import Event, first_cursor
from services.results.proposal import Proposal, of_abandoned, of_ended
from shared.contracts.orchestrator import EVENTS_PER_ATTEMPT_MAX, SessionProgressed
from tests.support.result_messages import abandoned, ended, output_of, progressed

READERS = 3


@dataclass(frozen=True)
class Deliver:
    """A batch of progress, by places in the history's messages: lost, repeated and reordered at will."""

    places: tuple[int, ...]


@dataclass(frozen=True)
class End:
    """The ending arrives (again); `other` is a different one, which wins only where it is the first."""

    other: bool = False


@dataclass(frozen=True)
class Read:
    reader: int
    limit: int


@dataclass(frozen=True)
class History:
    texts: dict[tuple[int, str], tuple[str, ...]]
    """What each writer says: (attempt, epoch) -> its deltas. Two epochs of one attempt are a worker and a zombie."""
    cuts: tuple[int, ...]
    """How many deltas each message carries, in turn."""
    proposal: tuple[str | None, str, int]
    """The output's text (None: no output), its refusal, and its attempt."""
    steps: tuple[Deliver | End | Read, ...]

    def messages(self, request_id: str) -> list[SessionProgressed]:
        sizes = itertools.cycle(self.cuts)
        messages = []
        for (attempt, epoch), texts in self.texts.items():
            messages.append(progressed(request_id, attempt, epoch=epoch))
            place = 0
            while place < len(texts):
                size = next(sizes)
                messages.append(
                    progressed(request_id, attempt, texts[place : place + size], first=place + 1, epoch=epoch)
                )
                place += size
        return messages

    def ending(self, request_id: str, *, other: bool) -> Proposal:
        text, refusal, attempt = self.proposal
        if other:
            return of_abandoned(abandoned(request_id))
        if text is None:
            return of_ended(ended(request_id, None, status="cancelled", attempt=attempt))
        return of_ended(ended(request_id, output_of(text, refusal), attempt=attempt))


_TEXT = st.sampled_from([*map("".join, itertools.chain(*(itertools.product("ab", repeat=n) for n in (1, 2, 3))))])
_READ = st.integers(0, 4 * READERS - 1).map(lambda drawn: Read(drawn % READERS, 1 + drawn // READERS))
"""One draw for a step where one will do: to draw is nearly all that a history in memory costs."""


def _batches(count: int) -> st.SearchStrategy[Deliver]:
    """Of one to five of so many messages."""
    return st.binary(min_size=1, max_size=5).map(lambda drawn: Deliver(tuple(place % max(1, count) for place in drawn)))


@st.composite
def histories(draw: st.DrawFn) -> History:
    attempts = draw(st.integers(0, 3))
    texts: dict[tuple[int, str], tuple[str, ...]] = {}
    for attempt in range(1, attempts + 1):
        for epoch in draw(st.sampled_from((("worker",), ("worker", "zombie")))):
            texts[attempt, epoch] = tuple(draw(st.lists(_TEXT, max_size=6)))
    cuts = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    last = "".join(texts.get((attempts, "worker"), ()))
    text = draw(st.sampled_from((last, last, last + "c", "c", "", None)))
    proposal = (text, draw(st.sampled_from(("", "", "no"))), draw(st.integers(0, attempts + 1)))
    count = len(History(texts, cuts, proposal, ()).messages(""))
    step = st.one_of(_batches(count), _READ)
    before = draw(st.lists(step, max_size=25))
    after = draw(st.lists(st.one_of(step, st.builds(End, st.booleans())), max_size=8))
    steps = (*before, End(draw(st.integers(0, 5)) == 0), *after)
    return History(texts, cuts, proposal, steps)


class World(Protocol):
    """A log under test."""

    async def deliver(self, messages: Sequence[SessionProgressed]) -> None: ...
    async def end(self, proposal: Proposal) -> None: ...
    async def read(self, after: int, limit: int) -> Sequence[Event]: ...


@dataclass
class Reader:
    """A client: keeps its cursor and everything it was given."""

    seen: list[Event] = field(default_factory=list)

    async def read(self, world: World, limit: int) -> bool:
        page = await world.read(self.seen[-1].cursor if self.seen else 0, limit)
        self.seen.extend(page)
        return bool(page)

    def assembled(self, kind: str) -> str:
        text = ""
        for event in self.seen:
            if event.type == "output.superseded":
                text = ""
            elif event.type == kind:
                text += event.text or ""
        return text


async def play(history: History, world: World, request_id: str) -> list[Reader]:
    """Run the history, then let every reader read on to the end."""
    readers = [Reader() for _ in range(READERS)]
    messages = history.messages(request_id)
    for step in history.steps:
        match step:
            case Deliver(places):
                await world.deliver([messages[place] for place in places if messages])
            case End(other):
                await world.end(history.ending(request_id, other=other))
            case Read(number, limit):
                await readers[number].read(world, limit)
    for reader in readers:
        while await reader.read(world, 2):
            pass
    return readers


def winner(history: History, request_id: str) -> Proposal:
    return history.ending(request_id, other=next(step.other for step in history.steps if isinstance(step, End)))


def check(history: History, readers: Iterable[Reader], won: Proposal) -> None:
    """Every promise about the log that can be seen from outside."""
    output = won.output
    logs = [reader.seen for reader in readers]
    for log, reader in zip(logs, readers, strict=True):
        cursors = [event.cursor for event in log]
        assert cursors == sorted(set(cursors)), "each entry once, in increasing order"
        assert log == logs[0], "every reader sees the same log"
        assert reader.assembled("output.delta") == (output.text if output else "")
        assert reader.assembled("refusal.delta") == (history.proposal[1] if output else "")
    closing = [event for event in logs[0] if event.type.startswith("request.")]
    assert [event.type for event in closing] == [f"request.{won.status}"]
    assert closing[0] is logs[0][-1], "nothing comes after the end"
    _check_attempts(history, logs[0][:-1])


def _check_attempts(history: History, log: Sequence[Event]) -> None:
    """Each attempt but the last says a prefix of what one of its writers said, and begins with its announcement."""
    by_attempt = itertools.groupby(log, key=lambda event: event.cursor // EVENTS_PER_ATTEMPT_MAX)
    attempts = [(attempt, list(events)) for attempt, events in by_attempt]
    for attempt, events in attempts:
        if attempt:
            assert events[0].cursor == first_cursor(attempt)
            assert events[0].type == ("attempt.started" if attempt == 1 else "output.superseded")
    for attempt, events in attempts[:-1]:
        said = tuple(event.text for event in events[1:])
        writers = [texts for (number, _), texts in history.texts.items() if number == attempt]
        assert any(texts[: len(said)] == said for texts in writers)
