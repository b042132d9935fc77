"""The steps of one reply on the wire: bytes, pauses, stalls and breaks. Faults only ever edit this list."""

from dataclasses import dataclass
from typing import Literal

from deploy.local.standins.llm.behaviour import Behaviour
from deploy.local.standins.llm.wire import to_bytes

_BROKEN_FRAME = (
    b'data: {"id":"chatcmpl-broken","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"con\n\n'
)
_COMMENT = b": keep-alive\n\n"
_STREAM_ERROR = {
    "message": "The server had an error while processing your request.",
    "type": "server_error",
    "param": None,
    "code": "server_error",
}


@dataclass(slots=True)
class Send:
    data: bytes
    frames: int


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Silence until the named gate opens, the time is over, or the client leaves; both None means for ever."""

    gate: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Break:
    how: Literal["reset", "close", "garbage"]


Step = Send | Pause | Stall | Break


def stream_steps(frames: list[bytes], behaviour: Behaviour) -> list[Step]:
    """The steps of a streamed reply; frames with nothing between them are joined, for one write instead of many."""
    if behaviour.sent_whole:
        return [Send(b"".join(frames), len(frames))]
    steps: list[Step] = [Pause(behaviour.first_token_ms / 1000)] if behaviour.first_token_ms else []
    for index, step in enumerate(_faulted([Send(frame, 1) for frame in frames], behaviour)):
        if index and behaviour.between_chunks_ms and isinstance(step, Send):
            steps.append(Pause(behaviour.between_chunks_ms / 1000))
        steps.append(_dressed(step, behaviour))
    return _cut_small(_joined(steps), behaviour.http_chunk_bytes)


def json_steps(body: bytes, behaviour: Behaviour) -> list[Step]:
    """The steps of a whole reply: the faults of the wire strike in the middle of the body."""
    half = len(body) // 2
    if behaviour.sent_whole:
        return [Send(body, 1)]
    if behaviour.kind in ("bad_json", "eof"):
        return [Send(body[:half], 1)]
    if behaviour.kind == "stream_error":
        return [Send(to_bytes({"error": behaviour.error or _STREAM_ERROR}), 1)]
    steps: list[Step] = [Send(body[:half], 1), Send(body[half:], 1)]
    if behaviour.kind in ("cut", "bad_framing"):
        steps = [steps[0], _break(behaviour)]
    if behaviour.kind == "stall":
        steps.insert(1, Stall(behaviour.gate, _seconds(behaviour.stall_ms)))
    return _cut_small(_joined(steps), behaviour.http_chunk_bytes)


def _faulted(sends: list[Send], behaviour: Behaviour) -> list[Step]:
    point = behaviour.cut_point
    head, tail = list[Step](sends[:point]), list[Step](sends[point:])
    match behaviour.kind:
        case "cut" | "bad_framing":
            return [*head, _break(behaviour)]
        case "eof":
            return list(sends[:-1]) if behaviour.after_chunks is None else head
        case "stall":
            return [*head, Stall(behaviour.gate, _seconds(behaviour.stall_ms)), *tail]
        case "bad_json":
            return [*head, Send(_BROKEN_FRAME, 1), *tail[1:]]
        case "stream_error":
            return [*head, Send(b"data: " + to_bytes({"error": behaviour.error or _STREAM_ERROR}) + b"\n\n", 1)]
    return [*head, *tail]


def _break(behaviour: Behaviour) -> Break:
    return Break("garbage" if behaviour.kind == "bad_framing" else behaviour.cut_how)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _dressed(step: Step, behaviour: Behaviour) -> Step:
    if isinstance(step, Send):
        if behaviour.comments:
            step.data = _COMMENT + step.data
        if behaviour.crlf:
            step.data = step.data.replace(b"\n", b"\r\n")
    return step


def _joined(steps: list[Step]) -> list[Step]:
    joined: list[Step] = []
    run: list[Send] = []
    for step in [*steps, None]:
        if isinstance(step, Send):
            run.append(step)
            continue
        if run:
            joined.append(Send(b"".join(s.data for s in run), sum(s.frames for s in run)))
            run = []
        if step is not None:
            joined.append(step)
    return joined


def _cut_small(steps: list[Step], size: int | None) -> list[Step]:
    """Cut the bytes regardless of frames and characters, as a slow network does."""
    if size is None:
        return steps
    small: list[Step] = []
    for step in steps:
        if not isinstance(step, Send):
            small.append(step)
            continue
        parts = [Send(step.data[i : i + size], 0) for i in range(0, len(step.data), size)]
        if parts:
            parts[-1].frames = step.frames
        small.extend(parts)
    return small
