"""What operators are given (alerts, dashboard, their page, the list of metrics) speaks of what the code has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from scripts import metrics, prometheus_rule

ROOT: Final = metrics.ROOT
OBSERVABILITY: Final = ROOT / "deploy" / "observability"
PAGE: Final = ROOT / "docs" / "operations.md"


_METRIC: Final = re.compile(r"\bparley_\w+")
_SELECTOR: Final = re.compile(r"(\bparley_\w+)\{([^}]*(?:\{\w+\}[^}]*)*)\}")
_LABEL: Final = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_BY: Final = re.compile(r"\bby \(([^)]*)\)")


@pytest.fixture(scope="module")
def known() -> dict[str, metrics.Metric]:
    return {series: metric for metric in metrics.catalogue() for series in metric.series()}


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads((OBSERVABILITY / "dashboard.json").read_text())["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


def _queries() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield rule["alert"], rule["expr"]
    for panel in _panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def _anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("where", "query"), list(_queries()))
def test_a_query_uses_metrics_and_labels_that_the_code_has(
    where: str, query: str, known: dict[str, metrics.Metric]
) -> None:
    used = _METRIC.findall(query)
    assert used
    assert [name for name in used if name not in known] == []
    for name, selector in _SELECTOR.findall(query):
        assert set(_LABEL.findall(selector)) <= set(known[name].labels), name
    labels = {label for name in used for label in known[name].labels} | {"le", "job", "instance"}
    for grouping in _BY.findall(query):
        assert {label.strip() for label in grouping.split(",")} <= labels


def test_every_alert_says_how_urgent_it_is_and_where_to_read_on() -> None:
    anchors = _anchors(PAGE.read_text())
    rules = _rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (ROOT / file) == PAGE
        assert anchor in anchors
        assert anchor == rule["alert"].lower()


def test_every_alert_is_explained_and_nothing_else_is() -> None:
    _, _, explained = PAGE.read_text().partition("## What each alert means")
    assert re.findall(r"^### (.+)$", explained, re.MULTILINE) == [rule["alert"] for rule in _rules()]


def test_the_page_speaks_of_metrics_that_there_are(known: dict[str, metrics.Metric]) -> None:
    names = known.keys() | {metric.name for metric in metrics.catalogue()}
    assert [name for name in _METRIC.findall(PAGE.read_text()) if name not in names] == []


@pytest.mark.parametrize("file", ["operations.md", "metrics.md"])
def test_every_link_leads_somewhere(file: str) -> None:
    page = ROOT / "docs" / file
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        found = (page.parent / path) if path else page
        assert found.exists(), target
        assert not anchor or anchor in _anchors(found.read_text()), target


def test_the_list_of_metrics_is_what_the_code_has() -> None:
    assert metrics.FILE.read_text() == metrics.text(), "run `make openapi`"


def test_the_prometheus_operator_gets_the_same_alerts() -> None:
    assert prometheus_rule.FILE.read_text() == prometheus_rule.text(), "run `make openapi`"
    alerts = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())
    assert yaml.safe_load(prometheus_rule.text())["spec"] == alerts


def test_every_metric_says_what_it_counts(known: dict[str, metrics.Metric]) -> None:
    assert len(known) > 30
    for metric in known.values():
        assert metric.description.endswith("."), metric.name


def test_panels_are_apart_and_ask_the_chosen_data_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in _panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
