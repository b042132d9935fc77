"""Whether an answer keeps the response format that the caller asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.protocols import Validator
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

P = ParamSpec("P")
T = TypeVar("T")

SCHEMA_CHARS_MAX: Final = 100_000
REFERENCE_STEPS: Final = 10
STEPS_MAX: Final = 50_000
"""Keyword checks per validation: a schema whose references branch could keep this process busy for ever."""
ENTRIES_PER_STEP: Final = 10
"""Some keywords walk a list of their own for each value they are held against."""

_SKIPPED: Final = ("pattern", "patternProperties")
"""Regular expressions from outside are never run: one of them could hold this process. The provider enforces them."""


_CHECKING: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="response_format")


async def off_loop(check: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one of the checks below beside the event loop: a large one takes a second, and heartbeats must go on."""
    return await asyncio.get_running_loop().run_in_executor(_CHECKING, lambda: check(*args, **kwargs))


class BadResponseFormat(Exception):
    """The caller's response format cannot be checked; the text says why, without quoting it."""


class _TooManySteps(Exception):
    pass


def check_response_format(response_format: dict[str, Any] | None) -> None:
    """Raise BadResponseFormat where no answer could be held against it."""
    schema = schema_of(response_format)
    if schema is None:
        return
    if len(json.dumps(schema)) > SCHEMA_CHARS_MAX:
        raise BadResponseFormat(f"its schema is longer than {SCHEMA_CHARS_MAX} characters")
    try:
        error = next(_SCHEMA_VALIDATOR.iter_errors(schema), None)
    except RecursionError:
        raise BadResponseFormat("its schema is nested too deeply") from None
    if error is not None:
        raise BadResponseFormat(f"its schema is not valid at {error.json_path}")


def schema_of(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema that the text of the answer must match; None for free text."""
    if response_format is None or response_format.get("type") in (None, "text"):
        return None
    if response_format["type"] == "json_object":
        return {"type": "object"}
    if response_format["type"] != "json_schema":
        raise BadResponseFormat("its type must be text, json_object or json_schema")
    # Chat Completions nests the schema, Responses does not; both are accepted.
    holder = response_format.get("json_schema", response_format)
    schema = holder.get("schema") if isinstance(holder, dict) else None
    if not isinstance(schema, dict):
        raise BadResponseFormat("it has no schema object")
    return schema


def broken_rule(schema: dict[str, Any], text: str) -> str | None:
    """What the text breaks: a place and a keyword, never a value. None where it keeps the schema."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return "the output is not JSON"
    try:
        error = next(_validator(schema).iter_errors(answer), None)
    except (Unresolvable, _TooManySteps, RecursionError):
        raise BadResponseFormat("its schema is too complex, or refers to something outside itself") from None
    return None if error is None else f"{error.json_path} breaks {error.validator}"


def _validator(schema: dict[str, Any]) -> Validator:
    steps = 0

    def counted(
        name: str, check: Callable[..., Iterator[ValidationError] | None]
    ) -> Callable[..., Iterator[ValidationError]]:
        # Looking up a reference takes many times longer than any other keyword.
        cost = REFERENCE_STEPS if name in ("$ref", "$dynamicRef") else 1

        def step(validator: Validator, value: Any, *args: Any) -> Iterator[ValidationError]:
            nonlocal steps
            steps += cost + (len(value) // ENTRIES_PER_STEP if isinstance(value, list | dict) else 0)
            if steps > STEPS_MAX:
                raise _TooManySteps
            yield from check(validator, value, *args) or ()

        return step

    keywords = {
        name: counted(name, check)
        for name, check in (Draft202012Validator.VALIDATORS | _OWN).items()
        if name not in _SKIPPED
    }
    # An empty registry: a reference to another document is an error, not a download.
    checker = validators.create(
        Draft202012Validator.META_SCHEMA, keywords, type_checker=Draft202012Validator.TYPE_CHECKER
    )
    return checker(_without_patterns(schema), registry=Registry())


def _unique_items(_: Validator, wanted: Any, instance: Any, __: Any) -> Iterator[ValidationError]:
    """The library's own compares each with each where they cannot be sorted."""
    if wanted and isinstance(instance, list) and len({_comparable(entry) for entry in instance}) < len(instance):
        yield ValidationError("two entries are equal", validator="uniqueItems")


def _comparable(value: Any) -> Any:
    """Equal where JSON Schema calls the values equal: 1 is 1.0, but true is not 1."""
    if isinstance(value, list):
        return ("list", *map(_comparable, value))
    if isinstance(value, dict):
        return ("dict", frozenset((name, _comparable(entry)) for name, entry in value.items()))
    return (type(value) is bool, value)


_OWN: Final = {"uniqueItems": _unique_items}


def _without_patterns(schema: Any) -> Any:
    # additionalProperties and unevaluatedProperties look at patternProperties themselves.
    if isinstance(schema, dict):
        loose = {"patternProperties", "additionalProperties", "unevaluatedProperties"}
        dropped = loose if isinstance(schema.get("patternProperties"), dict) else set()
        kept = {name: value for name, value in _without_dialect(schema).items() if name not in dropped}
        return {name: _without_patterns(value) for name, value in kept.items()}
    return [_without_patterns(value) for value in schema] if isinstance(schema, list) else schema


def _without_dialect(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that names its dialect would be checked by the library's own keywords instead of ours."""
    return {name: value for name, value in schema.items() if name != "$schema" or not isinstance(value, str)}


# Without a format checker: "regex" would compile expressions from outside.
_SCHEMA_VALIDATOR: Final = validators.extend(Draft202012Validator, _OWN)(  # type: ignore[no-untyped-call]
    _without_dialect(Draft202012Validator.META_SCHEMA),
    registry=Registry().with_resources(
        (uri, DRAFT202012.create_resource(_without_dialect(REGISTRY.contents(uri))))
        for uri in REGISTRY
        if "/2020-12/" in uri
    ),
)
