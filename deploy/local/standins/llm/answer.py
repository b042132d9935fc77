"""The content of a reply: deterministic text from the request, a tool call, an instance of a schema, and its usage.

Token rule: a text costs ceil(characters / 4); each message costs 3 more, and each prompt 3. Nothing is random.
"""

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from deploy.local.standins.llm.behaviour import Behaviour
from deploy.local.standins.llm.call import Call, text_of
from deploy.local.standins.llm.schema_instance import instance

_WORD_LIST = "amber birch cedar delta ember fjord grove haven inlet jetty knoll larch maple north ocean pearl"
_WORDS = _WORD_LIST.split()
_DEFAULT_WORDS = 12
_ECHO_CHARS = 400
_PIECE_WORDS = 4
_PIECE_CHARS_OF_HUGE = 16 * 1024
ODD_TEXT = "nul \u0000 lone \ud800 and \udc00 separators \u2028 \u2029 next line \u0085 end"
_FINISH = {"content_filter": "content_filter", "length": "length", "tool_calls": "tool_calls"}


@dataclass(slots=True)
class Answer:
    pieces: list[str]
    finish_reason: str
    usage: dict[str, Any]
    refusal: bool = False
    tool_calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def tokens_of(text: str) -> int:
    return -(-len(text) // 4)


def prompt_tokens(body: dict[str, Any]) -> int:
    messages = body.get("messages") or []
    return 3 + sum(3 + tokens_of(text_of(m.get("content"))) for m in messages if isinstance(m, dict))


def tokens_max(body: dict[str, Any]) -> int | None:
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    return limit if isinstance(limit, int) and not isinstance(limit, bool) else None


def answer_to(call: Call, behaviour: Behaviour, seed: int) -> Answer:
    tool_calls = _tool_calls(call, behaviour, seed)
    pieces = [] if tool_calls and behaviour.text is None else _pieces(call, behaviour, seed)
    finish = "tool_calls" if tool_calls else "stop"
    limit = tokens_max(call.body)
    if limit is not None and tokens_of("".join(pieces)) > limit:
        pieces, finish = _split_text("".join(pieces)[: limit * 4]), "length"
    finish = behaviour.finish_reason or _FINISH.get(behaviour.kind, finish)
    usage = behaviour.usage or _usage(call.body, pieces, tool_calls)
    return Answer(pieces, finish, usage, behaviour.kind == "refusal", tool_calls)


def _usage(body: dict[str, Any], pieces: list[str], tool_calls: list[dict[str, Any]]) -> dict[str, Any]:
    asked = prompt_tokens(body)
    given = tokens_of("".join(pieces)) + sum(tokens_of(c["function"]["arguments"]) + 3 for c in tool_calls)
    return {
        "prompt_tokens": asked,
        "completion_tokens": given,
        "total_tokens": asked + given,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _pieces(call: Call, behaviour: Behaviour, seed: int) -> list[str]:
    if behaviour.pieces is not None:
        return list(behaviour.pieces)
    if behaviour.kind == "huge" and behaviour.text is None:
        return _split_text("x" * behaviour.huge_bytes, _PIECE_CHARS_OF_HUGE)
    return _split_text(_text(call, behaviour, seed))


def _text(call: Call, behaviour: Behaviour, seed: int) -> str:
    if behaviour.text is not None:
        return behaviour.text
    if behaviour.kind == "empty" or (behaviour.kind == "content_filter" and behaviour.after_chunks == 0):
        return ""
    if behaviour.kind == "refusal":
        return "I cannot help with that."
    if behaviour.kind == "odd_text":
        return ODD_TEXT
    structured = _structured(call.body.get("response_format"))
    return structured if structured is not None else _echo(call.last_user_text, behaviour.words, seed)


def _structured(response_format: object) -> str | None:
    if not isinstance(response_format, dict):
        return None
    if response_format.get("type") == "json_schema":
        schema = response_format.get("json_schema", {}).get("schema", {})
        return json.dumps(instance(schema), ensure_ascii=False)
    return '{"answer": "text"}' if response_format.get("type") == "json_object" else None


def _echo(asked: str, words: int | None, seed: int) -> str:
    digest = blake2b(asked.encode("utf-8", "replace"), salt=seed.to_bytes(16, "little", signed=True)).digest()
    count = _DEFAULT_WORDS if words is None else words
    chosen = " ".join(_WORDS[digest[i % 64] + i // 64 & 15] for i in range(count))
    return f"You said: {asked[:_ECHO_CHARS]} | {chosen}"


def _split_text(text: str, chars: int | None = None) -> list[str]:
    """Cut the text into pieces of some words (or characters) whose concatenation is the text."""
    if chars is not None:
        return [text[i : i + chars] for i in range(0, len(text), chars)]
    words = text.split(" ")
    pieces = [" ".join(words[i : i + _PIECE_WORDS]) for i in range(0, len(words), _PIECE_WORDS)]
    return [piece if i == 0 else " " + piece for i, piece in enumerate(pieces)] if text else []


def _tool_calls(call: Call, behaviour: Behaviour, seed: int) -> list[dict[str, Any]]:
    wanted = behaviour.tool_calls
    if wanted is None:
        offered = _offered_tool(call.body, behaviour.kind == "tool_calls")
        wanted = (
            [] if offered is None else [{"name": offered["name"], "arguments": instance(offered.get("parameters"))}]
        )
    return [_tool_call(index, tool, call, seed) for index, tool in enumerate(wanted)]


def _tool_call(index: int, tool: dict[str, Any], call: Call, seed: int) -> dict[str, Any]:
    arguments = tool.get("arguments", {})
    # A string is sent as it is, so that a script can send arguments that are not JSON.
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    identity = tool.get("id") or f"call_{blake2b(f'{seed}:{call.number}:{index}'.encode(), digest_size=12).hexdigest()}"
    return {"id": identity, "type": "function", "function": {"name": tool["name"], "arguments": text}}


def _offered_tool(body: dict[str, Any], scripted: bool) -> dict[str, Any] | None:
    """The tool to call when the script, or the request's own tool_choice, insists on one."""
    choice = body.get("tool_choice")
    functions: list[dict[str, Any]] = [t["function"] for t in body.get("tools") or () if t.get("type") == "function"]
    if isinstance(choice, dict):
        name = choice.get("function", {}).get("name")
        return next((f for f in functions if f["name"] == name), None)
    return functions[0] if functions and (scripted or choice == "required") else None
