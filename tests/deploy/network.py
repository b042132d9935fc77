"""What NetworkPolicies allow, computed as Kubernetes does: a way is open when both of its ends allow it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from tests.deploy.manifests import Object

NAMESPACE = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Peer:
    """A pod by its labels and those of its namespace, or an address outside the cluster's pods."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: Mapping[str, str] = field(default_factory=dict)
    """Empty for the namespace of the policies."""
    address: str = ""


def is_open(policies: Iterable[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP") -> bool:
    """Only pods of the policies' own namespace are held to them."""
    specs = [policy["spec"] for policy in policies]
    return (not _is_ours(source) or _end_allows(specs, source, target, "egress", port, protocol)) and (
        not _is_ours(target) or _end_allows(specs, target, source, "ingress", port, protocol)
    )


def _is_ours(peer: Peer) -> bool:
    return not peer.namespace and not peer.address


def _end_allows(specs: list[Object], pod: Peer, other: Peer, way: str, port: int, protocol: str) -> bool:
    of_pod = [s for s in specs if way.title() in s["policyTypes"] and _selects(s["podSelector"], pod.labels)]
    rules = [rule for spec in of_pod for rule in spec.get(way, ())]
    other_end = "to" if way == "egress" else "from"
    return not of_pod or any(
        _any_peer(rule.get(other_end), other) and _any_port(rule.get("ports"), port, protocol) for rule in rules
    )


def _any_peer(named: list[Object] | None, other: Peer) -> bool:
    return named is None or any(_is_peer(each, other) for each in named)


def _is_peer(named: Object, other: Peer) -> bool:
    if bool(other.address) != ("ipBlock" in named):
        return False
    if other.address:
        block, address = named["ipBlock"], ip_address(other.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(cidr) for cidr in block.get("except", ())
        )
    in_namespace = (
        _selects(named["namespaceSelector"], other.namespace) if "namespaceSelector" in named else not other.namespace
    )
    return in_namespace and _selects(named.get("podSelector", {}), other.labels)


def _any_port(named: list[Object] | None, port: int, protocol: str) -> bool:
    return named is None or any(
        each["protocol"] == protocol and port in range(each["port"], (each.get("endPort") or each["port"]) + 1)
        for each in named
    )


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    known = {"matchLabels", "matchExpressions"}
    assert set(selector) <= known, selector
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In", expression
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= dict(labels).items())
