"""Who can reach whom, computed from the policies and compared with the whole list of what is meant."""

import copy

import pytest

from tests.deploy.manifests import NAME, SERVICES, Manifests, written
from tests.deploy.network import NAMESPACE, Peer, is_open

COMPONENT = "app.kubernetes.io/component"
PODS = {
    **{name: Peer({NAME: name}) for name in (*SERVICES, "migrate", "rabbitmq")},
    "postgres": Peer({"cnpg.io/cluster": "postgres"}),
    "stray": Peer({NAME: "stray"}),
    "public route": Peer({}, {NAMESPACE: "gateway-system"}),
    "prometheus": Peer({NAME: "prometheus"}, {NAMESPACE: "monitoring"}),
    "keda": Peer({"app": "keda-operator"}, {NAMESPACE: "keda"}),
    "postgres operator": Peer({}, {NAMESPACE: "cnpg-system"}),
    "rabbitmq operator": Peer({}, {NAMESPACE: "rabbitmq-system"}),
    "subscriber": Peer({}, {NAMESPACE: "shop", "parley.example.com/subscriber": "true"}),
    "neighbour": Peer({}, {NAMESPACE: "shop"}),
    "collector of Helm": Peer({NAME: "opentelemetry-collector"}, {NAMESPACE: "observability"}),
    "collector of the operator": Peer({COMPONENT: "opentelemetry-collector"}, {NAMESPACE: "observability"}),
    "neighbour of collectors": Peer({}, {NAMESPACE: "observability"}),
    "dns": Peer({"k8s-app": "kube-dns"}, {NAMESPACE: "kube-system"}),
}
AMQP = (5671, 5672)
MANAGEMENT = (15671, 15672)
BROKER_METRICS = (15691, 15692)
OTHERS = (53, 4318, 4369, 5432, 8000, 8080, 8082, 8083, 9080, 9081, 9082, 9083, 9187, 25672, 35672)
PORTS = (*OTHERS, *AMQP, *MANAGEMENT, *BROKER_METRICS)
AMONG_NODES = (4369, 25672, 35672)
OPS = {"gateway": 9080, "orchestrator": 9081, "billing": 9082, "results": 9083}
MEANT = {
    ("public route", "gateway", 8080),
    ("public route", "billing", 8082),
    *((caller, "billing", 8082) for caller in ("gateway", "orchestrator")),
    *((caller, "results", 8083) for caller in ("gateway", "orchestrator")),
    *((client, "postgres", 5432) for client in (*SERVICES, "migrate", "postgres", "postgres operator", "keda")),
    *((client, "postgres", 8000) for client in ("postgres", "postgres operator")),
    *((client, "rabbitmq", port) for client in (*SERVICES, "subscriber") for port in AMQP),
    *((client, "rabbitmq", port) for client in ("keda", "rabbitmq operator") for port in MANAGEMENT),
    *(("rabbitmq", "rabbitmq", port) for port in AMONG_NODES),
    *(("prometheus", service, port) for service in SERVICES for port in OPS.values()),
    *((service, f"collector of {maker}", 4318) for service in SERVICES for maker in ("Helm", "the operator")),
    ("prometheus", "postgres", 9187),
    *(("prometheus", "rabbitmq", port) for port in BROKER_METRICS),
    *((pod, "dns", 53) for pod in (*SERVICES, "migrate", "postgres", "rabbitmq", "stray")),
}


def _ways(manifests: Manifests) -> set[tuple[str, str, int]]:
    """Every open way of TCP with one end in our namespace."""
    policies = manifests.of("NetworkPolicy")
    return {
        (source, target, port)
        for source, source_peer in PODS.items()
        for target, target_peer in PODS.items()
        for port in PORTS
        if not (source_peer.namespace and target_peer.namespace) and is_open(policies, source_peer, target_peer, port)
    }


def test_pods_reach_what_they_need_and_nothing_else(manifests: Manifests) -> None:
    assert _ways(manifests) == MEANT


def test_a_policy_that_is_missing_or_too_wide_is_seen() -> None:
    objects = written().objects
    without = tuple(found for found in objects if found["metadata"]["name"] != "default-deny")
    assert _ways(Manifests(without, rendered=False)) > MEANT
    wide = copy.deepcopy(objects)
    (policy,) = (found for found in wide if found["metadata"]["name"] == "gateway-from-public-route")
    del policy["spec"]["ingress"][0]["ports"]
    assert _ways(Manifests(wide, rendered=False)) - MEANT == {
        ("public route", "gateway", port) for port in PORTS if port != 8080
    }


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111"])
def test_only_those_who_call_providers_and_stripe_reach_the_internet(manifests: Manifests, address: str) -> None:
    policies = manifests.of("NetworkPolicy")
    internet = Peer(address=address)
    # PostgreSQL and RabbitMQ pods talk to the Kubernetes API, whose address only an overlay can know.
    for pod in (*SERVICES, "migrate"):
        assert is_open(policies, PODS[pod], internet, 443) == (pod in {"orchestrator", "billing"}), pod
        assert not is_open(policies, PODS[pod], internet, 80), pod


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.20.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "127.0.0.1", "fd00::1", "fe80::1"],
)
def test_nobody_reaches_private_addresses_or_the_clouds_metadata(manifests: Manifests, address: str) -> None:
    policies = manifests.of("NetworkPolicy")
    for pod in (*SERVICES, "migrate"):
        for port in (80, 443):
            assert not is_open(policies, PODS[pod], Peer(address=address), port), pod


def test_names_are_resolved_by_udp_too(manifests: Manifests) -> None:
    assert is_open(manifests.of("NetworkPolicy"), PODS["gateway"], PODS["dns"], 53, "UDP")


def test_the_public_route_shows_one_path_of_billing_and_the_api(manifests: Manifests) -> None:
    (route,) = manifests.of("HTTPRoute")
    shown = [
        (match["path"]["type"], match["path"]["value"], rule["backendRefs"][0]["name"], rule["backendRefs"][0]["port"])
        for rule in route["spec"]["rules"]
        for match in rule["matches"]
    ]
    assert shown == [("Exact", "/webhooks/stripe", "billing", 8082), ("PathPrefix", "/v1/", "gateway", 8080)]
    for *_, service, port in shown:
        assert [p["port"] for p in manifests.one("Service", service)["spec"]["ports"]] == [port]
