"""What spans are described with: OpenTelemetry's own names where it has one, and nothing that is content."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.semconv import attributes as stable
from opentelemetry.semconv._incubating import attributes as unstable

REPOSITORY = Path(__file__).parents[3]
SOURCES = (REPOSITORY / "shared" / "tracing.py", REPOSITORY / "services" / "orchestrator" / "attempt_span.py")
STANDARD = ("gen_ai.", "messaging.", "http.", "cloudevents.", "error.", "service.peer")
CONTENT = {
    "gen_ai.input.messages",
    "gen_ai.output.messages",
    "gen_ai.system_instructions",
    "gen_ai.tool.definitions",
    "gen_ai.prompt",
    "gen_ai.completion",
}
OUTDATED = {"gen_ai.system", "gen_ai.usage.prompt_tokens", "gen_ai.usage.completion_tokens", "messaging.operation"}


def _used(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(STANDARD):
            yield node.value


def _known() -> set[str]:
    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for package in (stable, unstable)
        for found in pkgutil.iter_modules(package.__path__)
    ]
    return {value for module in modules for value in vars(module).values() if isinstance(value, str)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_standard_attribute_is_one_of_the_conventions(path: Path) -> None:
    used = set(_used(path))
    assert len(used) > 5
    assert used - _known() == set()
    assert used & (CONTENT | OUTDATED) == set()
