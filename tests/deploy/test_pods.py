"""What every pod of Parley has: the restricted profile, probes, resources, a spread, a budget and one autoscaler."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.manifests import K8S, NAME, SERVICES, Manifests, Object, overlay_of, rendered, settings_of, written
from tests.deploy.restricted import violations


def test_every_pod_fits_the_restricted_profile_and_writes_nowhere(manifests: Manifests) -> None:
    pods = list(manifests.pods())
    assert {pod.name for pod in pods} == {*SERVICES, "migrate"}
    for pod in pods:
        assert violations(pod.spec) == [], pod
        assert pod.spec["automountServiceAccountToken"] is False, pod
        assert pod.spec["enableServiceLinks"] is False, pod
        assert not [volume for volume in pod.spec.get("volumes", ()) if set(volume) & {"emptyDir", "ephemeral"}], pod
        for container in pod.spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, pod


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda pod, container: pod["securityContext"].pop("seccompProfile"), "gateway: seccompProfile"),
        (lambda pod, container: pod["securityContext"].update(runAsNonRoot=False), "gateway: runAsNonRoot"),
        (lambda pod, container: pod["securityContext"].update(runAsUser=0), "runAsUser 0"),
        (lambda pod, container: pod.update(hostNetwork=True), "hostNetwork"),
        (lambda pod, container: pod["volumes"].append({"name": "x", "hostPath": {}}), "volume of kind hostPath"),
        (lambda pod, container: container["securityContext"].update(privileged=True), "gateway: privileged"),
        (
            lambda pod, container: container["securityContext"].pop("allowPrivilegeEscalation"),
            "gateway: allowPrivilegeEscalation",
        ),
        (
            lambda pod, container: container["securityContext"].pop("capabilities"),
            "gateway: capabilities are not dropped",
        ),
        (
            lambda pod, container: container["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
            "gateway: capabilities are added",
        ),
        (lambda pod, container: container["ports"][0].update(hostPort=80), "gateway: hostPort"),
        (
            lambda pod, container: container["livenessProbe"]["httpGet"].update(host="1.1.1.1"),
            "gateway: host of a probe or hook",
        ),
    ],
)
def test_the_check_of_the_profile_finds_what_it_is_for(spoil: Callable[[Object, Object], object], found: str) -> None:
    spec = copy.deepcopy(written().pod("gateway").spec)
    spoil(spec, spec["containers"][0])
    assert violations(spec) == [found]


def test_the_namespace_enforces_the_profile_of_a_named_version(manifests: Manifests) -> None:
    (namespace,) = manifests.of("Namespace")
    labels = namespace["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["pod-security.kubernetes.io/enforce-version"].startswith("v1.")
    assert not manifests.rendered or all(
        found["metadata"].get("namespace") == namespace["metadata"]["name"]
        for found in manifests.objects
        if found["kind"] != "Namespace"
    )


def test_no_account_of_a_pod_brings_a_token(manifests: Manifests) -> None:
    accounts = {found["metadata"]["name"]: found for found in manifests.of("ServiceAccount")}
    for pod in manifests.pods():
        assert accounts[pod.spec["serviceAccountName"]]["automountServiceAccountToken"] is False


def test_one_image_runs_what_exists_and_is_pinned(manifests: Manifests) -> None:
    containers = [container for pod in manifests.pods() for container in pod.spec["containers"]]
    (image,) = {container["image"] for container in containers}
    if manifests.rendered:
        name, _, tag = image.rpartition("/")[2].partition(":")
        assert "@sha256" in name or tag not in {"", "latest"}
    else:
        assert image == "parley", "the name that an overlay replaces"
    for pod in manifests.pods():
        for container in pod.spec["containers"]:
            service, *command = container["args"]
            assert service == f"services.{container['name']}"
            assert importlib.util.find_spec(f"{service}.__main__")
            assert command[:2] == (["migrate", "--wait"] if pod.kind == "Job" else [])
            assert "command" not in container, "the image's entry point is python -m"


@pytest.mark.parametrize("service", SERVICES)
def test_probes_ask_the_ops_port_and_only_readiness_asks_about_others(manifests: Manifests, service: str) -> None:
    (container,) = manifests.pod(service).spec["containers"]
    settings = settings_of(service, manifests.environment(container))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    serves = service != "orchestrator"
    assert ports == ({"http": settings.http_port} if serves else {}) | {"ops": settings.ops_port}
    paths = {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "ops"}


@pytest.mark.parametrize("service", SERVICES)
def test_services_lead_to_the_pods_that_serve(manifests: Manifests, service: str) -> None:
    pod = manifests.pod(service)
    if service == "orchestrator":
        assert service not in manifests.names("Service")
        return
    found = manifests.one("Service", service)["spec"]
    assert found["selector"].items() <= pod.labels.items()
    assert found.get("type", "ClusterIP") == "ClusterIP"
    (port,) = found["ports"]
    assert port["targetPort"] == "http", "metrics and health are never behind a Service"
    (container,) = pod.spec["containers"]
    assert port["port"] == next(p["containerPort"] for p in container["ports"] if p["name"] == "http")


def test_resources_are_asked_for_and_bounded(manifests: Manifests) -> None:
    for pod in manifests.pods():
        for container in pod.spec["containers"]:
            asked, limit = container["resources"]["requests"], container["resources"]["limits"]
            assert _bytes(asked["memory"]) <= _bytes(limit["memory"]) <= 2 * _bytes(asked["memory"]), pod
            assert pod.kind != "Job" or asked["memory"] == limit["memory"], "a migration has no large messages"
            assert asked["cpu"] and limit["cpu"]


@pytest.mark.parametrize("service", SERVICES)
def test_the_readme_adds_up_the_memory_that_is_asked_for(manifests: Manifests, service: str) -> None:
    section = (K8S / "README.md").read_text().partition("## Memory")[2].partition("\n## ")[0]
    (container,) = manifests.pod(service).spec["containers"]
    resources = container["resources"]
    row = f"| {service} | {resources['requests']['memory']} | {resources['limits']['memory']} |"
    assert row in section


def _bytes(quantity: str) -> int:
    number, unit = int(quantity[:-2]), quantity[-2:]
    return number * {"Mi": 2**20, "Gi": 2**30}[unit]


@pytest.mark.parametrize("service", SERVICES)
def test_a_rollout_and_a_drained_node_take_one_pod_at_a_time(manifests: Manifests, service: str) -> None:
    deployment = manifests.one("Deployment", service)["spec"]
    labels = manifests.pod(service).labels
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert deployment["selector"]["matchLabels"] == {NAME: service}
    assert deployment["selector"]["matchLabels"].items() <= labels.items()
    budget = manifests.one("PodDisruptionBudget", service)["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"] == {NAME: service}


@pytest.mark.parametrize("service", SERVICES)
def test_pods_spread_over_zones_and_machines(manifests: Manifests, service: str) -> None:
    constraints = manifests.pod(service).spec["topologySpreadConstraints"]
    assert [c["topologyKey"] for c in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    for constraint in constraints:
        assert constraint["labelSelector"]["matchLabels"] == {NAME: service}
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway", "a cluster with one zone must be able to run it"


@pytest.mark.parametrize("service", SERVICES)
def test_each_deployment_has_one_autoscaler_that_goes_down_slowly(manifests: Manifests, service: str) -> None:
    assert "replicas" not in manifests.one("Deployment", service)["spec"]
    by_cpu = [found for found in manifests.of("HorizontalPodAutoscaler") if found["metadata"]["name"] == service]
    by_queue = [found for found in manifests.of("ScaledObject") if found["metadata"]["name"] == service]
    if manifests.rendered:
        assert len(by_cpu + by_queue) == 1
    for scaler in by_cpu:
        assert scaler["spec"]["scaleTargetRef"]["name"] == service
        assert 2 <= scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
    for scaler in by_queue:
        assert scaler["spec"]["scaleTargetRef"]["name"] == service
        assert 2 <= scaler["spec"]["minReplicaCount"] < scaler["spec"]["maxReplicaCount"]
    behaviors = [scaler["spec"]["behavior"] for scaler in by_cpu]
    behaviors += [s["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] for s in by_queue]
    for behavior in behaviors:
        assert behavior["scaleDown"]["stabilizationWindowSeconds"] >= 300
        assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 60}]


@pytest.mark.parametrize("component", sorted(folder.name for folder in (K8S / "components").iterdir()))
def test_each_component_works_without_the_others(component: str, tmp_path: Path) -> None:
    overlay_of(tmp_path, component)
    assert {pod.name for pod in rendered(tmp_path).pods()} == {*SERVICES, "migrate"}
