"""The table of routes: documented, scoped, and in words that the list of problem codes knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from services.gateway.problems import CODES, STATUS_BY_CODE
from services.gateway.routes.table import ROUTES

ROOT = Path(__file__).parents[3]
SOURCES = [*(ROOT / "services/gateway").rglob("*.py"), ROOT / "shared/http.py"]
RAISED = re.compile(r"""(?:Problem\(\s*(\d{3}),\s*|_queue_full\()"(\w+)\"""")


def test_no_route_is_registered_twice() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


def test_every_route_asks_for_a_key_and_administration_asks_for_an_administrator() -> None:
    for route in ROUTES:
        assert route.scope == ("admin" if route.path.startswith("/v1/admin/") else "account"), route.path


def test_every_code_of_a_route_is_in_the_list() -> None:
    for route in ROUTES:
        assert set(route.all_codes) <= set(STATUS_BY_CODE), route.path


def test_every_route_that_names_a_noun_may_answer_that_there_is_none() -> None:
    for route in ROUTES:
        for noun in re.findall(r"{(\w+)_id}", route.path):
            assert f"{noun}_not_found" in route.codes, route.path


def test_codes_are_listed_once() -> None:
    assert len(STATUS_BY_CODE) == len(CODES)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_problem_raised_is_in_the_list_with_its_status(source: Path) -> None:
    internal = {"unauthorized"}
    for status, code in RAISED.findall(source.read_text()):
        if code not in internal:
            assert code in STATUS_BY_CODE, (source, code)
            assert status in ("", str(STATUS_BY_CODE[code])), (source, code)
