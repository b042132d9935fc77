"""openapi.json and asyncapi.yaml say what the code does: generated, valid, complete."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from openapi_spec_validator import OpenAPIV31SpecValidator

from scripts import asyncapi, openapi
from services.gateway.routes.table import ROUTES
from shared.contracts.message import Message
from shared.messaging.codec import encode
from shared.messaging.topology import QUEUES
from tests.support.result_messages import ended, output_of


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(openapi.FILE.read_text())
    return document


@pytest.fixture(scope="module")
def bus() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(asyncapi.FILE.read_text())
    return document


def test_openapi_json_is_what_the_code_generates() -> None:
    assert openapi.FILE.read_text() == openapi.text(), "run `make openapi`"


def test_asyncapi_yaml_is_what_the_code_generates() -> None:
    assert asyncapi.FILE.read_text() == asyncapi.text(), "run `make openapi`"


def test_openapi_json_is_valid(api: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(api).validate()


def test_every_route_is_documented_and_nothing_else_is(api: dict[str, Any]) -> None:
    documented = {(method.upper(), path) for path, operations in api["paths"].items() for method in operations}
    assert documented == {(route.method, route.path) for route in ROUTES}


def test_every_operation_has_an_id_of_its_own(api: dict[str, Any]) -> None:
    ids = [operation["operationId"] for operations in api["paths"].values() for operation in operations.values()]
    assert len(ids) == len(set(ids)) == len(ROUTES)


def test_every_problem_code_of_a_route_is_documented_with_its_status(api: dict[str, Any]) -> None:
    for route in ROUTES:
        responses = api["paths"][route.path][route.method.lower()]["responses"]
        named = {
            code
            for status, response in responses.items()
            if int(status) >= 400
            for code in re.findall(r"`(\w+)`: ", response["description"])
        }
        assert named == set(route.all_codes), route.path


def test_every_model_of_an_answer_is_a_component(api: dict[str, Any]) -> None:
    for operations in api["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                for body in response.get("content", {}).values():
                    reference = body["schema"].get("$ref", "#/components/schemas/Problem")
                    assert reference.rpartition("/")[2] in api["components"]["schemas"]


def test_asyncapi_yaml_has_the_parts_that_version_3_requires(bus: dict[str, Any]) -> None:
    assert bus["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= bus["info"].keys()
    for channel in bus["channels"].values():
        assert channel["address"] and channel["messages"]
        assert set(re.findall(r"{(\w+)}", channel["address"])) == channel.get("parameters", {}).keys()
    for operation in bus["operations"].values():
        assert operation["action"] in {"send", "receive"}
        assert _resolve(bus, operation["channel"]["$ref"])


def test_every_reference_of_asyncapi_yaml_leads_somewhere(bus: dict[str, Any]) -> None:
    references = re.findall(r"'(#/[^']+)'", asyncapi.FILE.read_text())
    assert len(references) > 50
    for reference in references:
        assert _resolve(bus, reference) is not None


def test_every_message_and_every_queue_is_documented(bus: dict[str, Any]) -> None:
    addresses = {channel["address"] for channel in bus["channels"].values()}
    assert addresses >= {queue.name for queue in QUEUES}
    assert addresses >= {message_class.type for message_class in _concrete(Message)}
    assert {message["name"] for message in bus["components"]["messages"].values()} == {
        message_class.type for message_class in _concrete(Message)
    }


def test_a_queue_is_documented_with_what_is_bound_to_it(bus: dict[str, Any]) -> None:
    for queue in QUEUES:
        channel = next(channel for channel in bus["channels"].values() if channel["address"] == queue.name)
        names = {_resolve(bus, message["$ref"])["name"] for message in channel["messages"].values()}
        assert names == set(queue.bindings)


def test_the_documented_headers_are_those_that_are_sent(bus: dict[str, Any]) -> None:
    message = ended("req_" + "1" * 32, output_of("Hi"))
    sent = encode(message).headers
    documented = bus["components"]["messages"]["session_ended"]["headers"]["properties"]
    assert set(documented) == {name for name in sent if name.startswith("ce-")}
    for name, schema in documented.items():
        assert schema.get("const", sent[name]) == sent[name]


def _concrete(message_class: type[Message]) -> set[type[Message]]:
    found = {message_class} if "type" in vars(message_class) else set()
    # Classes that tests define are none of the system's contracts.
    return found.union(*(_concrete(child) for child in message_class.__subclasses__() if _is_ours(child)))


def _is_ours(message_class: type[Message]) -> bool:
    return message_class.__module__.startswith("shared.contracts")


def _resolve(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found
