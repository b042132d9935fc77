"""Public model names -> deployments."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from services.orchestrator.routing import FAILURES_BEFORE_REST, Deployment, Models, Routing, places

NOW = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
FILE = """
[models.default]
[[models.default.deployments]]
name = "first"
provider = "openai"
model = "m-1"
quota_domain = "one"
requests_per_minute = 60

[[models.default.deployments]]
name = "second"
provider = "openai"
model = "m-2"
quota_domain = "two"
"""


def routing() -> Routing:
    return Routing(Models.model_validate(tomllib.loads(FILE)))


def names(found: list[Deployment]) -> list[str]:
    return [deployment.name for deployment in found]


def test_deployments_are_tried_in_the_order_of_the_file() -> None:
    found = routing().candidates("default", NOW)
    assert names(found) == ["first", "second"]
    assert [place.domain for place in places(found)] == ["one", "two"]


def test_a_deployment_that_was_tried_comes_last_and_a_dead_one_never() -> None:
    assert names(routing().candidates("default", NOW, tried={"first"})) == ["second", "first"]
    assert names(routing().candidates("default", NOW, dead={"first"}, tried={"second"})) == ["second"]


def test_an_unknown_model_has_no_deployment() -> None:
    assert routing().candidates("other", NOW) == []
    assert routing().model("other") is None


def test_a_resting_deployment_comes_last_until_it_has_rested() -> None:
    known = routing()
    known.rest("first", NOW + timedelta(seconds=10))
    assert names(known.candidates("default", NOW)) == ["second", "first"]
    assert names(known.candidates("default", NOW + timedelta(seconds=10))) == ["first", "second"]


def test_some_failures_in_a_row_make_a_deployment_rest_and_a_success_forgets_them() -> None:
    known = routing()
    for _ in range(FAILURES_BEFORE_REST - 1):
        assert known.rest_seconds("first", "server_error") is None
    assert known.rest_seconds("first", "server_error") is not None
    known.succeeded("first")
    assert known.rest_seconds("first", "server_error") is None


def test_a_wrong_key_makes_a_deployment_rest_at_once() -> None:
    assert routing().rest_seconds("first", "unauthorized") is not None


def test_a_rate_limit_is_the_buckets_business() -> None:
    known = routing()
    assert {known.rest_seconds("first", "rate_limited") for _ in range(20)} == {None}


def broken(**changes: Any) -> dict[str, Any]:
    contents = tomllib.loads(FILE)
    contents["models"]["default"]["deployments"][1].update(changes)
    return contents


@pytest.mark.parametrize(
    "contents",
    [
        {"models": {}},
        {"models": {"default": {"deployments": []}}},
        broken(name="first"),
        broken(quota_domain="one"),
        broken(requests_per_minute=0),
        broken(base_url="ftp://x"),
        broken(provider="unknown"),
        broken(misspelt=1),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(contents: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Models.model_validate(contents)


def test_one_deployment_may_serve_several_models() -> None:
    contents = tomllib.loads(FILE)
    contents["models"]["fast"] = {"deployments": [contents["models"]["default"]["deployments"][0]]}
    assert names(Routing(Models.model_validate(contents)).candidates("fast", NOW)) == ["first"]
