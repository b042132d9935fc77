"""Writes openapi.json (3.1) from the gateway's route table, its schemas and its problem codes."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, models_json_schema
from pydantic_core.core_schema import DataclassField, ModelField, TypedDictField

from services.gateway.problems import CODES
from services.gateway.routes.call import Header, Route
from services.gateway.routes.table import ROUTES

ROOT: Final = Path(__file__).parents[1]
FILE: Final = ROOT / "openapi.json"

_ID_PREFIX: Final = {"session_id": "ses", "request_id": "req", "account_id": "acct", "key_id": "key"}
_TAG_BY_PATH: Final = (("admin", "/v1/admin/"), ("requests", "/requests"), ("sessions", "/v1/sessions"))
_HEADERS: Final[dict[Header, str]] = {
    "Idempotency-Key": "A text of your own, the same for every try of one call: a repeat gets the first answer.",
    "If-None-Match": "The ETag you have: 304 where nothing changed.",
    "Prefer": "`wait=N` keeps the call open for at most N seconds (60 at most) until something changes.",
    "Accept": "`text/event-stream` for a stream in place of a page.",
    "Last-Event-ID": "The id of the last event seen; sent by browsers when they reconnect a stream.",
}
_DESCRIPTION: Final = (
    "Send a turn, follow it by polling or streaming, read its result. Every error is problem JSON (RFC 9457) with a "
    "stable `code`. Times are RFC 3339 in UTC. A cursor of events only grows and is good for as long as the request "
    "is kept; a client that lost its connection asks again after the last cursor it has seen."
)
_PROBLEM: Final = {
    "title": "Problem",
    "description": "What went wrong: act on `code`, show `detail` to people.",
    "type": "object",
    "required": ["type", "title", "status", "code", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "enum": [code.code for code in CODES]},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "description": "With `invalid_request` and `invalid_parameter`: where and what.",
            "items": {
                "type": "object",
                "required": ["path", "message"],
                "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
            },
        },
        "reason": {"type": "string", "description": "With `payment_required`: the reason that decided."},
        "reasons": {
            "type": "array",
            "description": "With `payment_required`: all reasons, the one that decided first.",
            "items": {"type": "string"},
        },
        "action_hint": {"type": ["string", "null"], "description": "With `payment_required`: what helps."},
    },
}


def document() -> dict[str, Any]:
    """The whole description; every route of the table is in it."""
    paths: dict[str, dict[str, Any]] = {}
    schemas = _Schemas(ROUTES)
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Parley",
            "version": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
            "description": _DESCRIPTION,
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {**schemas.definitions, "Problem": _PROBLEM},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An account's key, `pk_...`."},
                "admin": {"type": "http", "scheme": "bearer", "description": "An administrator's key, `pa_...`."},
            },
        },
    }


class _AsWritten(GenerateJsonSchema):
    """An answer always has all its fields, those with a default too."""

    def field_is_required(self, field: ModelField | DataclassField | TypedDictField, total: bool) -> bool:
        return self.mode == "serialization" or super().field_is_required(field, total)


class _Schemas:
    """The schemas of all bodies: those that come in as they are validated, those that go out as they are written."""

    def __init__(self, routes: Iterable[Route[Any, Any]]) -> None:
        used: list[tuple[type[BaseModel], JsonSchemaMode]] = []
        for route in routes:
            if route.reads_body:
                used.append((route.body, "validation"))
            if route.response is not None:
                used.append((route.response, "serialization"))
        unique = sorted(set(used), key=lambda pair: (pair[0].__name__, pair[1]))
        self._references, definitions = models_json_schema(
            unique, ref_template="#/components/schemas/{model}", schema_generator=_AsWritten
        )
        self.definitions: dict[str, Any] = definitions["$defs"]

    def reference(self, model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
        return self._references[model, mode]


def _operation(route: Route[Any, Any], schemas: _Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "tags": [next((tag for tag, part in _TAG_BY_PATH if part in route.path), "account")],
        "parameters": [*_path_parameters(route), *_query_parameters(route), *_header_parameters(route)],
        "responses": {str(route.status): _answer(route, schemas), **_problems(route)},
    }
    if route.scope == "admin":
        operation["security"] = [{"admin": []}]
    if "If-None-Match" in route.headers:
        operation["responses"]["304"] = {"description": "Nothing changed."}
    if route.events:
        operation["responses"]["204"] = {"description": "As a stream: the log is closed and nothing comes after it."}
    if route.reads_body:
        body = schemas.reference(route.body, "validation")
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


def _path_parameters(route: Route[Any, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{_ID_PREFIX[name]}_[0-9a-f]{{32}}$"},
        }
        for name in re.findall(r"{(\w+)}", route.path)
    ]


def _query_parameters(route: Route[Any, Any]) -> list[dict[str, Any]]:
    schema = route.query.model_json_schema(mode="validation")
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": _without_title(field)}
        for name, field in schema.get("properties", {}).items()
    ]


def _header_parameters(route: Route[Any, Any]) -> list[dict[str, Any]]:
    # OpenAPI describes Accept by the response's media types and ignores a parameter of this name.
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": _HEADERS[name],
            "schema": {"type": "string"},
        }
        for name in route.headers
        if name != "Accept"
    ]


def _answer(route: Route[Any, Any], schemas: _Schemas) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": inspect.getdoc(route.response) if route.response else "Done."}
    headers = _answer_headers(route)
    if headers:
        answer["headers"] = headers
    if route.response is not None:
        schema = schemas.reference(route.response, "serialization")
        answer["content"] = {"application/json": {"schema": schema}}
    if route.events:
        answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return answer


def _answer_headers(route: Route[Any, Any]) -> dict[str, Any]:
    said = {}
    if route.status == 202:
        said["Location"] = "Where the request is."
        said["Retry-After"] = "Seconds until a look is worth it; `poll_after_ms` is finer."
    if "Idempotency-Key" in route.headers:
        said["Idempotent-Replayed"] = "`true` where this answers a repeat."
    if "If-None-Match" in route.headers:
        said["ETag"] = "Send it as If-None-Match."
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in said.items()}


def _problems(route: Route[Any, Any]) -> dict[str, Any]:
    """One response for each status, with the codes that it may carry here."""
    by_status: dict[int, list[str]] = {}
    for code in CODES:
        if code.code in route.all_codes:
            by_status.setdefault(code.status, []).append(f"`{code.code}`: {code.meaning}")
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {"description": " ".join(meanings), "content": content} for status, meanings in by_status.items()
    }


def _without_title(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if name != "title"}


def text() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
