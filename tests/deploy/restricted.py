"""The restricted Pod Security Standard, as Kubernetes 1.34 defines it, over one pod template."""

from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import Object

VOLUME_KINDS = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP_KINDS = {"RuntimeDefault", "Localhost"}
HOST_SWITCHES = ("hostNetwork", "hostPID", "hostIPC")
HANDLERS = ("livenessProbe", "readinessProbe", "startupProbe")


def violations(spec: Object) -> list[str]:
    """What the standard forbids in a pod's `spec`; empty where it may run."""
    return [*_of_pod(spec), *(f"{c['name']}: {what}" for c in _containers(spec) for what in _of_container(spec, c))]


def _containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", ()), *spec["containers"], *spec.get("ephemeralContainers", ())]


def _of_pod(spec: Object) -> Iterator[str]:
    security = spec.get("securityContext", {})
    yield from (name for name in HOST_SWITCHES if spec.get(name))
    for volume in spec.get("volumes", ()):
        yield from (f"volume of kind {kind}" for kind in set(volume) - {"name"} - VOLUME_KINDS)
    if security.get("runAsUser") == 0:
        yield "runAsUser 0"
    yield from (f"pod {name}" for name in ("sysctls", "seLinuxOptions", "windowsOptions") if security.get(name))


def _of_container(spec: Object, container: Object) -> Iterator[str]:
    security, pod_security = container.get("securityContext", {}), spec.get("securityContext", {})

    def effective(name: str) -> Any:
        return security.get(name, pod_security.get(name))

    if security.get("privileged"):
        yield "privileged"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if "ALL" not in security.get("capabilities", {}).get("drop", ()):
        yield "capabilities are not dropped"
    if set(security.get("capabilities", {}).get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities are added"
    if effective("runAsNonRoot") is not True:
        yield "runAsNonRoot"
    if security.get("runAsUser") == 0:
        yield "runAsUser 0"
    if (effective("seccompProfile") or {}).get("type") not in SECCOMP_KINDS:
        yield "seccompProfile"
    if security.get("procMount", "Default") != "Default":
        yield "procMount"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"
    hooks = [container.get(name, {}) for name in HANDLERS] + list(container.get("lifecycle", {}).values())
    if any("host" in action for hook in hooks for action in hook.values() if isinstance(action, dict)):
        yield "host of a probe or hook"
