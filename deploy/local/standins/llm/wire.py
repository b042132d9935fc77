"""The bytes of OpenAI's Chat Completions: the completion object, stream frames and error bodies."""

import json
import time
from json.encoder import encode_basestring
from typing import Any

from deploy.local.standins.llm.answer import Answer

_FINGERPRINT = "fp_standin"
_PIECE_CHARS_OF_ARGUMENTS = 24
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
DONE = b"data: [DONE]\n\n"


def to_bytes(value: object) -> bytes:
    # Lone surrogates have no UTF-8 form; backslashreplace writes them as the escape that JSON has for them.
    return _ENCODER.encode(value).encode("utf-8", "backslashreplace")


def _text_to_bytes(text: str) -> bytes:
    return encode_basestring(text).encode("utf-8", "backslashreplace")


def completion_id(seed: int, number: int) -> str:
    return f"chatcmpl-{seed:x}standin{number:012d}"


def completion(identity: str, model: str, answer: Answer) -> bytes:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
    if answer.refusal:
        message["content"], message["refusal"] = None, answer.text
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = answer.tool_calls
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return to_bytes(
        {
            "id": identity,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
            "usage": answer.usage,
            "service_tier": "default",
            "system_fingerprint": _FINGERPRINT,
        }
    )


class Frames:
    """Writes the frames of one stream; what all of them share is encoded once."""

    def __init__(self, identity: str, model: str, include_usage: bool) -> None:
        head = to_bytes(
            {
                "id": identity,
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": model,
                "service_tier": "default",
                "system_fingerprint": _FINGERPRINT,
            }
        )
        self._include_usage = include_usage
        self._head = b"data: " + head[:-1]
        self._delta = self._head + b',"choices":[{"index":0,"delta":'
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._end = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def of(self, answer: Answer) -> list[bytes]:
        """Every frame, from the role to [DONE]."""
        first: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
        if answer.tool_calls and not answer.pieces:
            first["content"] = None
        # Text is nearly all of a stream: its frames are put together from bytes, a fifth of the cost of an encoder.
        start = self._delta + (b'{"refusal":' if answer.refusal else b'{"content":')
        end = b"}" + self._end
        frames = [self._frame(first), *(start + _text_to_bytes(piece) + end for piece in answer.pieces)]
        for index, tool_call in enumerate(answer.tool_calls):
            frames.extend(self._tool_frames(index, tool_call))
        frames.append(self._frame({}, answer.finish_reason))
        if self._include_usage:
            frames.append(self._head + b',"choices":[],"usage":' + to_bytes(answer.usage) + b"}\n\n")
        return [*frames, DONE]

    def _frame(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        end = b',"logprobs":null,"finish_reason":' + to_bytes(finish_reason) + b"}]"
        return self._delta + to_bytes(delta) + end + self._tail

    def _tool_frames(self, index: int, tool_call: dict[str, Any]) -> list[bytes]:
        function = tool_call["function"]
        opening = tool_call | {"index": index, "function": {"name": function["name"], "arguments": ""}}
        deltas: list[dict[str, Any]] = [opening]
        for start in range(0, len(function["arguments"]), _PIECE_CHARS_OF_ARGUMENTS):
            piece = function["arguments"][start : start + _PIECE_CHARS_OF_ARGUMENTS]
            deltas.append({"index": index, "function": {"arguments": piece}})
        return [self._frame({"tool_calls": [delta]}) for delta in deltas]


_ERRORS: dict[int, tuple[str, str, str | None]] = {
    400: ("Invalid request.", "invalid_request_error", None),
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("You do not have access to this model.", "invalid_request_error", "permission_denied"),
    404: ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    408: ("Request timed out.", "timeout", "request_timeout"),
    413: ("The request is too large.", "invalid_request_error", "request_too_large"),
    429: ("Rate limit reached for requests.", "requests", "rate_limit_exceeded"),
    500: ("The server had an error while processing your request.", "server_error", None),
    502: ("Bad gateway.", "server_error", None),
    503: ("The engine is currently overloaded.", "service_unavailable_error", "server_is_overloaded"),
    504: ("Gateway timeout.", "server_error", None),
}


def error_body(status: int, fields: dict[str, Any] | None = None) -> bytes:
    """`fields` replaces parts of the usual error: message, type, param, code."""
    message, kind, code = _ERRORS.get(status, ("The request failed.", "server_error", None))
    return to_bytes({"error": {"message": message, "type": kind, "param": None, "code": code} | (fields or {})})
