"""The environment of every container is one that its service accepts, and secrets are only ever referred to."""

import re
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from opentelemetry.sdk.trace import TracerProvider

from services.billing.policy import load_policy
from services.gateway.models import read_model_names
from services.orchestrator.config import Settings as OrchestratorSettings
from services.orchestrator.config import load_models
from shared.config import ServiceSettings
from tests.deploy.manifests import K8S, SERVICES, Manifests, Object, Pod, settings_of

READ_BY_THE_DRIVER = {"PGSSLMODE", "PGSSLROOTCERT"}
READ_BY_THE_SDK_OF_TRACES = {"OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}
SECRET_ROW = re.compile(r"^\| (?P<names>`[a-z`, -]+`) \| (?P<keys>.+) \|$", re.MULTILINE)
QUOTED = re.compile(r"`([a-z-]+)`")
ENV_FROM_A_WHOLE_SECRET = "provider-keys"


def _containers(manifests: Manifests) -> list[tuple[Pod, Object]]:
    return [(pod, container) for pod in manifests.pods() for container in pod.spec["containers"]]


def _variables(settings: ServiceSettings) -> set[str]:
    return {str(field.validation_alias or name).upper() for name, field in type(settings).model_fields.items()}


def test_every_service_has_all_it_needs_and_nothing_misspelt(manifests: Manifests) -> None:
    known: set[str] = set()
    given: set[str] = set()
    for service in SERVICES:
        (container,) = manifests.pod(service).spec["containers"]
        environ = manifests.environment(container)
        settings = settings_of(service, environ)
        known |= _variables(settings)
        given |= set(environ)
        own = manifests.config(_config_of(container, f"{service}-settings"))
        assert set(own) <= _variables(settings)
    assert given - known <= READ_BY_THE_DRIVER | READ_BY_THE_SDK_OF_TRACES


def test_a_part_of_the_requests_is_traced(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> None:
    (container,) = manifests.pod("gateway").spec["containers"]
    environ = manifests.environment(container)
    for name in READ_BY_THE_SDK_OF_TRACES:
        monkeypatch.setenv(name, environ[name])
    sampler = TracerProvider(shutdown_on_exit=False).sampler
    assert "root:TraceIdRatioBased{0.05}" in sampler.get_description()


def _config_of(container: Object, name: str) -> str:
    """The ConfigMap's name with the hash that kustomize gives it."""
    (found,) = (
        source["configMapRef"]["name"]
        for source in container["envFrom"]
        if re.fullmatch(rf"{name}(-[a-z0-9]{{10}})?", source.get("configMapRef", {}).get("name", ""))
    )
    return cast("str", found)


def test_a_migration_knows_the_database_of_its_service_and_no_other_secret(manifests: Manifests) -> None:
    (job,) = (pod for pod in manifests.pods() if pod.kind == "Job")
    assert [container["name"] for container in job.spec["containers"]] == list(SERVICES)
    for container in job.spec["containers"]:
        (service,) = manifests.pod(container["name"]).spec["containers"]
        dsn = f"{container['name'].upper()}_DATABASE_URL"
        assert container["env"] == [variable for variable in service["env"] if variable["name"] == dsn]
        assert container["envFrom"] == service["envFrom"][:1]


def test_peers_are_found_where_their_services_are(manifests: Manifests) -> None:
    for _, container in _containers(manifests):
        for variable, value in manifests.environment(container).items():
            if variable in {"BILLING_URL", "RESULTS_URL"}:
                url = urlsplit(value)
                assert url.hostname == variable.partition("_")[0].lower()
                (port,) = manifests.one("Service", url.hostname)["spec"]["ports"]
                assert port["port"] == url.port


@pytest.mark.parametrize(
    ("service", "variable"), [("gateway", "MODELS_FILE"), ("orchestrator", "MODELS_FILE"), ("billing", "PLANS_FILE")]
)
def test_files_are_mounted_where_the_settings_say_and_can_be_read(
    manifests: Manifests, service: str, variable: str, tmp_path: Path
) -> None:
    file = tmp_path / "file.toml"
    file.write_text(_mounted(manifests, service, variable))
    if service == "gateway":
        assert "default" in read_model_names(file)
    elif service == "billing":
        assert load_policy(file, livemode=True).plans
    else:
        settings = settings_of(service, _environment(manifests, service) | {"MODELS_FILE": str(file)})
        models = load_models(cast("OrchestratorSettings", settings))
        assert {deployment.key_variable for deployment in models.deployments()} == {"OPENAI_API_KEY"}


def _environment(manifests: Manifests, service: str) -> dict[str, str]:
    (container,) = manifests.pod(service).spec["containers"]
    return manifests.environment(container)


def _mounted(manifests: Manifests, service: str, variable: str) -> str:
    """The text that the pod finds at the path that the variable names."""
    spec = manifests.pod(service).spec
    (container,) = spec["containers"]
    path = Path(manifests.environment(container)[variable])
    (volume_name,) = (m["name"] for m in container["volumeMounts"] if Path(m["mountPath"]) == path.parent)
    (volume,) = (volume for volume in spec["volumes"] if volume["name"] == volume_name)
    return manifests.config(volume["configMap"]["name"])[path.name]


def test_secrets_are_referred_to_and_listed(manifests: Manifests) -> None:
    assert manifests.of("Secret") == []
    for pod, container in _containers(manifests):
        assert not [variable for variable in container["env"] if "value" in variable], pod
    listed = _listed_secrets()
    used = set(_references(manifests.objects))
    assert used <= {(name, key) for name, keys in listed.items() for key in keys} | {
        (ENV_FROM_A_WHOLE_SECRET, ""),
        ("postgres-ca", "ca.crt"),  # the operator's own
    }
    assert {name for name, _ in used} - {"postgres-ca"} == set(listed)


def _listed_secrets() -> dict[str, set[str]]:
    """README.md's table: the keys of each Secret."""
    readme = (K8S / "README.md").read_text().partition("## Secrets")[2].partition("\n## ")[0]
    return {
        name: set(QUOTED.findall(row["keys"]))
        for row in SECRET_ROW.finditer(readme)
        for name in QUOTED.findall(row["names"])
    }


def _references(node: Any) -> set[tuple[str, str]]:
    """Every (Secret, key) that is named anywhere; a whole Secret has the key ''."""
    if isinstance(node, list | tuple):
        return {found for item in node for found in _references(item)}
    if not isinstance(node, dict):
        return set()
    found = {found for item in node.values() for found in _references(item)}
    if "secretKeyRef" in node:
        found.add((node["secretKeyRef"]["name"], node["secretKeyRef"]["key"]))
    if "secretRef" in node:
        found.add((node["secretRef"]["name"], ""))
    if "secretTargetRef" in node:
        found |= {(ref["name"], ref["key"]) for ref in node["secretTargetRef"]}
    if "secret" in node:
        found |= {(node["secret"]["secretName"], item["key"]) for item in node["secret"]["items"]}
    for operators in ("passwordSecret", "importCredentialsSecret"):
        if operators in node:
            found |= {(node[operators]["name"], "username"), (node[operators]["name"], "password")}
    return found
