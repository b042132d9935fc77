"""What Prometheus and Grafana find: the pods, the alerts, the dashboard."""

import json
from pathlib import Path

import yaml

from scripts.prometheus_rule import ALERTS
from tests.deploy.manifests import K8S, PRODUCTION, REPOSITORY, SERVICES, Manifests, overlay_of, rendered


def test_prometheus_finds_every_service_by_its_ops_port(manifests: Manifests) -> None:
    monitor = manifests.one("PodMonitor", "parley")["spec"]
    (expression,) = monitor["selector"]["matchExpressions"]
    assert set(expression["values"]) == set(SERVICES)
    assert [(endpoint["port"], endpoint["path"]) for endpoint in monitor["podMetricsEndpoints"]] == [
        ("ops", "/metrics")
    ]


def test_prometheus_has_the_alerts(manifests: Manifests) -> None:
    assert manifests.one("PrometheusRule", "parley")["spec"] == yaml.safe_load(ALERTS.read_text())


def test_grafana_finds_the_dashboard() -> None:
    dashboard = rendered(PRODUCTION).one("ConfigMap", "parley-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    written_down = (REPOSITORY / "deploy" / "observability" / "dashboard.json").read_text()
    assert json.loads(dashboard["data"]["dashboard.json"]) == json.loads(written_down)


def test_the_readmes_patch_gives_each_object_the_label_that_prometheus_selects(tmp_path: Path) -> None:
    section = (K8S / "README.md").read_text().partition("## Monitoring")[2].partition("\n## ")[0]
    patches = section.partition("```yaml\n")[2].partition("```")[0]
    overlay_of(tmp_path, "monitoring", patches)
    objects = [found for found in rendered(tmp_path).objects if found["apiVersion"].startswith("monitoring.coreos.com")]
    assert {found["kind"] for found in objects} == {"PodMonitor", "PrometheusRule"}
    assert {found["metadata"]["labels"]["release"] for found in objects} == {"kube-prometheus-stack"}
