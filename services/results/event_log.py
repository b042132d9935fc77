"""The event log of a request: cursors, contiguous runs, freezing, supersession, fillers, closing. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from shared.contracts.content import Failure, Outcome, Output
from shared.contracts.orchestrator import EVENTS_PER_ATTEMPT_MAX, ProgressEvent, SessionProgressed

EventType = Literal[
    "attempt.started",
    "output.superseded",
    "output.delta",
    "refusal.delta",
    "request.completed",
    "request.incomplete",
    "request.failed",
    "request.refused",
    "request.cancelled",
]

GAP_MAX: Final = 256
"""How far ahead of the first missing entry rows are kept; the ending carries the rest anyway."""
EVENT_BYTES_MAX: Final = 256 * 1024
LOG_BYTES_MAX: Final = 64 * 1024 * 1024
"""All text of one request's log, each row counted with `ROW_BYTES` more: bounds their number too."""
ROW_BYTES: Final = 64

_CLOSING: Final[dict[Outcome, EventType]] = {
    "completed": "request.completed",
    "incomplete": "request.incomplete",
    "failed": "request.failed",
    "refused": "request.refused",
    "cancelled": "request.cancelled",
}


def first_cursor(attempt: int) -> int:
    """The cursor of index 0 of an attempt. What a request says before its first attempt has no cursor."""
    return attempt * EVENTS_PER_ATTEMPT_MAX


@dataclass(frozen=True)
class Event:
    """One entry: a delta has `text`, every other type has `data`."""

    cursor: int
    type: EventType
    at: datetime
    text: str | None = None
    data: dict[str, object] | None = None


@dataclass(frozen=True)
class Texts:
    """What a reader has assembled, or should have: every delta since the last supersession, by kind."""

    output: str = ""
    refusal: str = ""


def texts_of(output: Output | None) -> Texts:
    if output is None:
        return Texts()
    return Texts(output.text, "".join(item.refusal for item in output.items if item.type == "refusal"))


@dataclass
class Head:
    """A log as its row describes it."""

    request_id: str
    account_id: str
    session_id: str
    seq: int
    attempt: int = 0
    epoch: str = ""
    """Of the one writer that is heard under `attempt`."""
    visible_cursor: int = 0
    """Readers see every row up to here: rows are added behind it and, once it has passed them, never change."""
    stored_cursor: int = 0
    """The last row; beyond `visible_cursor` only while an entry between them is missing."""
    log_bytes: int = 0
    closed: bool = False


@dataclass
class RequestLog:
    """One request's log under its row's lock: takes what arrives and says what must be written.

    `beyond_gap` are the cursors stored beyond the visible one.
    """

    head: Head
    beyond_gap: InitVar[Iterable[int]] = ()
    cut_after: int | None = None
    """Stored rows beyond this cursor are to be deleted before anything is added."""
    refused: Counter[str] = field(default_factory=Counter)
    _stored: set[int] = field(init=False)
    _added: dict[int, Event] = field(init=False, default_factory=dict)

    def __post_init__(self, beyond_gap: Iterable[int]) -> None:
        self.head = replace(self.head)  # the caller's stays as it was read
        self._stored = set(beyond_gap)

    @property
    def added(self) -> Sequence[Event]:
        """The rows to insert, in order."""
        return [self._added[cursor] for cursor in sorted(self._added)]

    def take(self, message: SessionProgressed) -> bool:
        """Take one progress message, in whatever order it came. True where readers have something new."""
        before = self.head.visible_cursor
        stale = self._why_stale(message)
        if stale is not None:
            self.refused[stale] += max(1, len(message.events))
            return False
        if message.attempt > self.head.attempt:
            self._start_attempt(message.attempt, message.epoch, message.at)
        for event in message.events:
            self._take_event(event)
        self._note_last()
        return self.head.visible_cursor > before or not message.events

    def close(
        self, status: Outcome, output: Output | None, error: Failure | None, attempt: int, at: datetime, said: Texts
    ) -> None:
        """Write the end of the log; `said` is the visible text of the current attempt.

        Whatever progress was lost, deltas and supersessions together assemble exactly the output's text.
        """
        if attempt > self.head.attempt:
            said = Texts()
            self._start_attempt(attempt, "", at)
        self._freeze()
        wanted = texts_of(output)
        if not (wanted.output.startswith(said.output) and wanted.refusal.startswith(said.refusal)):
            self._append("output.superseded", at, data={"attempt": self.head.attempt})
            said = Texts()
        if wanted.output != said.output:
            self._append("output.delta", at, text=wanted.output[len(said.output) :])
        if wanted.refusal != said.refusal:
            self._append("refusal.delta", at, text=wanted.refusal[len(said.refusal) :])
        ending: dict[str, object] = {"status": status, "error": error.model_dump(mode="json") if error else None}
        self._append(_CLOSING[status], at, data=ending)
        self._note_last()
        self.head.closed = True

    def _why_stale(self, message: SessionProgressed) -> str | None:
        if self.head.closed:
            return "ended"
        if message.attempt < self.head.attempt:
            return "superseded"
        # A wait after an attempt may be told by the task's next claim, which has another epoch; text may not.
        if message.events and message.attempt == self.head.attempt and message.epoch != self.head.epoch:
            return "other_epoch"
        return None

    def _start_attempt(self, attempt: int, epoch: str, at: datetime) -> None:
        self._freeze()
        cursor = first_cursor(attempt)
        self.head.attempt, self.head.epoch, self.head.visible_cursor = attempt, epoch, cursor - 1
        self._append("attempt.started" if attempt == 1 else "output.superseded", at, data={"attempt": attempt})

    def _freeze(self) -> None:
        """Nothing may fill the gap any more, so what lies beyond it goes."""
        visible = self.head.visible_cursor
        if self._stored and self.cut_after is None:
            self.cut_after = visible
        self._stored = set()
        self._added = {cursor: event for cursor, event in self._added.items() if cursor <= visible}

    def _take_event(self, event: ProgressEvent) -> None:
        cursor = first_cursor(self.head.attempt) + event.index
        size = len(event.text.encode())
        if cursor <= self.head.visible_cursor or cursor in self._stored or cursor in self._added:
            self.refused["duplicate"] += 1
        elif cursor > self.head.visible_cursor + GAP_MAX:
            self.refused["beyond_gap"] += 1
        elif size > EVENT_BYTES_MAX or self.head.log_bytes + size + ROW_BYTES > LOG_BYTES_MAX:
            self.refused["too_large"] += 1
        else:
            self._add(Event(cursor, event.type, event.at, text=event.text))

    def _add(self, event: Event) -> None:
        self._added[event.cursor] = event
        self.head.log_bytes += ROW_BYTES + len((event.text or "").encode())
        self._advance()

    def _append(
        self, type_: EventType, at: datetime, *, text: str | None = None, data: dict[str, object] | None = None
    ) -> None:
        self._add(Event(self.head.visible_cursor + 1, type_, at, text, data))

    def _advance(self) -> None:
        visible = self.head.visible_cursor
        while visible + 1 in self._added or visible + 1 in self._stored:
            visible += 1
            self._stored.discard(visible)
        self.head.visible_cursor = visible

    def _note_last(self) -> None:
        self.head.stored_cursor = max((self.head.visible_cursor, *self._stored, *self._added))
