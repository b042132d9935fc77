"""What review would otherwise keep repeating: limits of size, homes of the environment and of SQL, a topology that
fits its contracts."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import shared.contracts
from shared.contracts.message import Message
from shared.messaging.topology import QUEUES

REPOSITORY = Path(__file__).parents[2]
PRODUCT = sorted(path for root in ("services", "shared", "deploy") for path in (REPOSITORY / root).rglob("*.py"))
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", PRODUCT, ids=_named)
def test_a_module_says_what_it_is_and_stays_readable(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module begins with a docstring of one to three lines"
    assert text.count("\n") <= FILE_LINES_MAX, "a file this long wants to be a folder of the same name"
    for function in _functions(path):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, f"{function.name} has {lines} lines"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in PRODUCT
        if _named(path).startswith(("services", "shared")) and _named(path) != "shared/config.py"
    ],
    ids=_named,
)
def test_the_environment_is_read_by_settings_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in {"environ", "getenv", "environb"}, f"line {node.lineno} reads the environment"


@pytest.mark.parametrize("path", PRODUCT, ids=_named)
def test_no_exception_is_swallowed_without_a_word(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert not all(isinstance(step, ast.Pass) for step in node.body), f"line {node.lineno} swallows an error"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "services").rglob("*.py")), ids=_named)
def test_sql_stands_in_the_store_alone(path: Path) -> None:
    if "store" in path.parts or path.name == "store.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            statement = len(words) > 3 and words[0] in {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}
            assert not statement, f"line {node.lineno} holds SQL"


def _message_classes() -> list[type[Message]]:
    for module in pkgutil.iter_modules(shared.contracts.__path__):
        importlib.import_module(f"shared.contracts.{module.name}")
    pending: list[type[Message]] = [Message]
    found: list[type[Message]] = []
    while pending:
        for subclass in pending.pop().__subclasses__():
            pending.append(subclass)
            if "type" in vars(subclass):
                found.append(subclass)
    return found


def test_every_contract_reaches_the_queues_it_names() -> None:
    bound = {(queue.name, key) for queue in QUEUES for key in queue.bindings}
    for message_class in _message_classes():
        for queue in message_class.queues:
            assert (queue, message_class.type) in bound, f"{message_class.__name__} never reaches {queue}"


def test_every_binding_of_a_durable_queue_has_a_contract_that_names_it() -> None:
    by_type = {message_class.type: message_class for message_class in _message_classes()}
    for queue in QUEUES:
        for key in queue.bindings:
            if queue.kind == "durable":
                assert queue.name in by_type[key].queues
            else:
                assert by_type[key].best_effort


def test_a_messages_class_and_type_are_one_word() -> None:
    for message_class in _message_classes():
        words = message_class.type.replace("_", ".").split(".")
        assert message_class.__name__ == "".join(word.capitalize() for word in words)
