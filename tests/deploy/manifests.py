"""The manifests of deploy/k8s as objects: as they are written, and as kustomize renders them."""

import importlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.config import ServiceSettings

Object = dict[str, Any]

REPOSITORY = Path(__file__).parents[2]
K8S = REPOSITORY / "deploy" / "k8s"
PRODUCTION = K8S / "overlays" / "production"
SERVICES = ("gateway", "orchestrator", "billing", "results")
NAME = "app.kubernetes.io/name"
NO_KUSTOMIZE = 3
"""render.sh's exit status where the tool is missing."""

# Values of the right form for what comes from Secrets.
_SECRET_VALUES = {
    "AMQP_URL": "amqp://parley:secret@rabbitmq:5672/",
    "STRIPE_API_KEY": "sk_test_of_the_tests",
    "STRIPE_WEBHOOK_SECRETS": "whsec_one,whsec_two",
    "SERVICE_TOKEN": "a token of the tests",
    "API_KEY_PEPPER": "a pepper of the tests",
    **{
        f"{service.upper()}_DATABASE_URL": f"postgresql://{service}:secret@postgres-rw/{service}"
        for service in SERVICES
    },
}


@dataclass(frozen=True)
class Pod:
    """A pod template and whose it is."""

    kind: str
    name: str
    labels: Mapping[str, str]
    spec: Object

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Manifests:
    """All objects; `rendered` tells whether kustomize made them, or they are as written, without its patches."""

    objects: tuple[Object, ...]
    rendered: bool

    def of(self, kind: str) -> list[Object]:
        return [found for found in self.objects if found["kind"] == kind]

    def names(self, kind: str) -> set[str]:
        return {found["metadata"]["name"] for found in self.of(kind)}

    def one(self, kind: str, name: str) -> Object:
        (found,) = (found for found in self.of(kind) if found["metadata"]["name"] == name)
        return found

    def pods(self) -> Iterator[Pod]:
        for workload in (*self.of("Deployment"), *self.of("Job")):
            template = workload["spec"]["template"]
            yield Pod(workload["kind"], workload["metadata"]["name"], template["metadata"]["labels"], template["spec"])

    def pod(self, service: str) -> Pod:
        (found,) = (pod for pod in self.pods() if pod.kind == "Deployment" and pod.name == service)
        return found

    def config(self, name: str) -> dict[str, str]:
        data: dict[str, str] = self.one("ConfigMap", name)["data"]
        return data

    def environment(self, container: Object) -> dict[str, str]:
        """What the container's process sees, with made-up values for what Secrets hold."""
        environ: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                environ |= self.config(source["configMapRef"]["name"])
        for variable in container.get("env", ()):
            environ[variable["name"]] = variable.get("value") or _SECRET_VALUES[variable["name"]]
        return environ


def settings_of(service: str, environ: Mapping[str, str]) -> ServiceSettings:
    """The service's own settings in this environment and no other; raises ValidationError where they are wrong."""
    settings_class: type[ServiceSettings] = importlib.import_module(f"services.{service}.config").Settings
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        return settings_class()


@cache
def written() -> Manifests:
    """Every file of base, components and production, and the ConfigMaps that they generate, under their plain names."""
    objects: list[Object] = []
    config: dict[str, dict[str, str]] = {}
    for folder in (K8S / "base", *sorted((K8S / "components").iterdir()), PRODUCTION):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        for name in kustomization["resources"]:
            if (folder / name).is_file():
                objects += yaml.safe_load_all((folder / name).read_text())
        for generator in kustomization.get("configMapGenerator", ()):
            data = config.setdefault(generator["name"], {})
            data |= dict(literal.split("=", 1) for literal in generator.get("literals", ()))
            data |= {file: (folder / file).read_text() for file in generator.get("files", ())}
    objects += [{"kind": "ConfigMap", "metadata": {"name": name}, "data": data} for name, data in config.items()]
    return Manifests(tuple(objects), rendered=False)


@cache
def rendered(folder: Path) -> Manifests:
    """Skips the test where there is no kustomize, unless PARLEY_KUSTOMIZE_REQUIRED is set, as `make k8s` does."""
    answer = subprocess.run(["sh", str(K8S / "render.sh"), str(folder)], capture_output=True, text=True, check=False)
    if answer.returncode == NO_KUSTOMIZE and not os.environ.get("PARLEY_KUSTOMIZE_REQUIRED"):
        pytest.skip("kustomize is not installed; `make k8s` runs this")
    assert answer.returncode == 0, answer.stderr
    return Manifests(tuple(yaml.safe_load_all(answer.stdout)), rendered=True)


def overlay_of(folder: Path, component: str, more: str = "") -> None:
    """Write into the folder an overlay of base and one component."""
    up = "/".join([".."] * (len(folder.resolve().parts) - 1)) + str(K8S)
    maps = "configMapGenerator: [{name: models, literals: [models.toml=]}, {name: plans, literals: [plans.toml=]}]\n"
    (folder / "kustomization.yaml").write_text(
        f"resources: [{up}/base]\ncomponents: [{up}/components/{component}]\n{maps}{more}"
    )
