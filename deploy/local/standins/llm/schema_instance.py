"""A minimal instance of a simple JSON schema: the required properties, the first alternative, the smallest value."""

from typing import Any

_DEPTH_MAX = 32
_TEXT_OF_FORMAT = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def instance(schema: object, root: dict[str, Any] | None = None, depth: int = 0) -> Any:
    if not isinstance(schema, dict) or depth > _DEPTH_MAX:
        return None
    root = schema if root is None else root
    if "$ref" in schema:
        return instance(_referred(schema["$ref"], root), root, depth + 1)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf"):
        if schema.get(name):
            return instance(schema[name][0], root, depth + 1)
    return _of_type(schema, root, depth)


def _referred(reference: str, root: dict[str, Any]) -> object:
    node: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        node = node.get(part.replace("~1", "/").replace("~0", "~"), {}) if part else node
    return node


def _of_type(schema: dict[str, Any], root: dict[str, Any], depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "null")
    match kind[0] if isinstance(kind, list) else kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: instance(properties.get(name, {}), root, depth + 1) for name in schema.get("required", ())}
        case "array":
            return [instance(schema.get("items"), root, depth + 1) for _ in range(schema.get("minItems", 0))]
        case "string":
            text = _TEXT_OF_FORMAT.get(schema.get("format", ""), "text").ljust(schema.get("minLength", 0), "x")
            return text[: schema["maxLength"]] if "maxLength" in schema else text
        case "integer":
            return int(_smallest(schema, step=1))
        case "number":
            return _smallest(schema, step=0.5)
        case "boolean":
            return True
    return None


def _smallest(schema: dict[str, Any], step: float) -> float:
    if "minimum" in schema:
        return float(schema["minimum"])
    if "exclusiveMinimum" in schema:
        return float(schema["exclusiveMinimum"]) + step
    if "exclusiveMaximum" in schema:
        return min(1.0, float(schema["exclusiveMaximum"]) - step)
    return min(1.0, float(schema.get("maximum", 1.0)))
