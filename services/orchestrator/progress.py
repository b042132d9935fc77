"""Turns a provider's many small deltas into few messages, about ten a second; an answer at once needs none at all."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal, Protocol

from shared.contracts.content import WaitingOn
from shared.contracts.gateway import SessionRequested
from shared.contracts.orchestrator import PROGRESS_INDEX_MAX, ProgressEvent, SessionProgressed

INTERVAL_SECONDS: Final = 0.1
"""Between two messages, and before the first: the ending of a call that is over by then tells everything."""
SILENCE_SECONDS: Final = 0.25
"""After so long a call that has said nothing is announced all the same: nobody sees that it began any earlier."""
PENDING_CHARS_MAX: Final = 4096
"""So much text does not wait for the interval, and ends the event that it is in. A delta that is longer is several."""

EVENTS_MAX: Final = 64
"""Of one message. What came while packets had to wait may be a whole answer, and a message is not to grow with it."""

DeltaType = Literal["output.delta", "refusal.delta"]
Make = Callable[[], SessionProgressed | None]
Send = Callable[[Make], bool]
"""Best effort: some time soon what is made then is sent, None is not. False: it will not be asked."""


class Timers(Protocol):
    """The part of an event loop that this needs."""

    def time(self) -> float: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


class Timer(Protocol):
    def cancel(self) -> None: ...


def announcement(
    command: SessionRequested,
    attempt: int,
    epoch: str,
    at: datetime,
    *,
    waiting_on: WaitingOn | None = None,
    waiting_until: datetime | None = None,
) -> SessionProgressed:
    """An attempt begins, or the turn waits."""
    return SessionProgressed(
        request_id=command.request_id,
        account_id=command.account_id,
        session_id=command.session_id,
        seq=command.seq,
        attempt=attempt,
        epoch=epoch,
        at=at,
        waiting_on=waiting_on,
        waiting_until=waiting_until,
    )


class Progress:
    """The log of one attempt while it runs; the ending repairs what is lost of it."""

    def __init__(
        self,
        command: SessionRequested,
        attempt: int,
        epoch: str,
        send: Send,
        now: Callable[[], datetime],
        timers: Timers,
    ) -> None:
        self._head = announcement(command, attempt, epoch, now())
        self._send = send
        self._now = now
        self._timers = timers
        self._index = 0
        self._begun = False
        self._next_at = 0.0
        self._timer: Timer | None = None
        self._pending: list[tuple[DeltaType, str]] = []
        self._pending_chars = 0
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._is_asked_for = False
        self._is_whole = False

    @property
    def text(self) -> str:
        """The assistant's text so far; a refusal is not part of it."""
        return "".join(self._texts)

    @property
    def text_bytes(self) -> int:
        """Of all that came, refusals too."""
        return sum(len(text.encode()) for text in (*self._texts, *self._refusals))

    def begin(self) -> None:
        self._next_at = self._timers.time() + INTERVAL_SECONDS
        self._timer = self._timers.call_later(SILENCE_SECONDS, self.flush)

    def add(self, kind: DeltaType, text: str) -> None:
        (self._texts if kind == "output.delta" else self._refusals).append(text)
        if not self._pending:
            self._cancel_timer()  # the one that would announce a silent call
        pieces = range(0, len(text), PENDING_CHARS_MAX)
        self._pending += [(kind, text[start : start + PENDING_CHARS_MAX]) for start in pieces]
        self._pending_chars += len(text)
        wait_seconds = self._next_at - self._timers.time()
        if wait_seconds <= 0 or self._pending_chars >= PENDING_CHARS_MAX:
            self.flush()
        elif self._timer is None:
            self._timer = self._timers.call_later(wait_seconds, self.flush)

    def flush(self) -> None:
        """Ask for what is pending to be sent, the first time also that the attempt has begun."""
        self._cancel_timer()
        self._next_at = self._timers.time() + INTERVAL_SECONDS
        if not self._is_asked_for and (self._pending or not self._begun):
            self._is_asked_for = True
            if not self._send(self._message):
                self._is_asked_for = False

    def _message(self) -> SessionProgressed | None:
        """With what has come by now; what it cannot hold is asked for again."""
        self._is_asked_for = False
        if self._is_whole:
            return None
        self._begun = True
        events = self._events()
        if self._pending:
            self.flush()
        return self._head.model_copy(update={"at": self._now(), "events": events}) if events else self._head

    def drop(self) -> None:
        """Send nothing more, nor what was asked for: the answer is whole, and its ending carries it."""
        self._is_whole = True
        self._cancel_timer()
        self._pending, self._pending_chars = [], 0

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _events(self) -> tuple[ProgressEvent, ...]:
        merged: list[tuple[DeltaType, list[str]]] = []
        chars = taken = 0
        for kind, text in self._pending:
            if merged and merged[-1][0] == kind and chars < PENDING_CHARS_MAX:
                merged[-1][1].append(text)
            elif len(merged) < EVENTS_MAX:
                merged.append((kind, [text]))
                chars = 0
            else:
                break
            chars += len(text)
            taken += 1
        self._pending = self._pending[taken:]
        self._pending_chars = sum(len(text) for _, text in self._pending)
        # Past the last index the log stays as it is; the ending carries the rest.
        merged = merged[: PROGRESS_INDEX_MAX - self._index]
        at = self._now()
        events = tuple(
            ProgressEvent(index=self._index + number, type=kind, at=at, text="".join(texts))
            for number, (kind, texts) in enumerate(merged, start=1)
        )
        self._index += len(events)
        return events
