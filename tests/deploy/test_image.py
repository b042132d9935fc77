"""The Dockerfile, what may enter its build, and the compose file that runs the image."""

import fnmatch
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import REPOSITORY, SERVICES, settings_of
from tests.deploy.test_time_budget import MARGIN_SECONDS, seconds_to_end

DOCKERFILE = (REPOSITORY / "deploy" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())["services"]
OF_THE_IMAGE = sorted(name for name, service in COMPOSE.items() if service["image"] == "parley")
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")


def _steps(stage: str) -> list[tuple[str, str]]:
    """(instruction, rest) of one stage, which is named by the end of its FROM line."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    (found,) = (part for part in re.split(r"(?m)^FROM ", joined) if part.splitlines()[:1] == [stage])
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in found.splitlines()[1:]) if word]


def test_the_base_is_one_digest_of_the_python_that_the_tests_run_on() -> None:
    froms = re.findall(r"(?m)^FROM (.+)$", DOCKERFILE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64} AS base", froms[0])
    assert froms[1:] == ["base AS build", "base"]


def test_dependencies_come_from_the_lock_file_without_those_of_development() -> None:
    runs = [rest for word, rest in _steps("base AS build") if word == "RUN"]
    assert any("uv sync --locked --no-dev" in run for run in runs)
    assert any("--require-hashes --requirement /tmp/uv.txt" in run for run in runs)
    pins = (REPOSITORY / "deploy" / "uv.txt").read_text()
    assert re.search(r"(?m)^uv==[\d.]+ \\\n    --hash=sha256:[0-9a-f]{64}", pins)


def test_the_image_runs_as_a_number_that_is_not_root_and_starts_nothing_unasked() -> None:
    last = _steps("base")
    assert [rest for word, rest in last if word == "USER"] == ["10001:10001"]
    assert [rest for word, rest in last if word == "ENTRYPOINT"] == ['["python", "-m"]']
    assert not {word for word, _ in last} & {"RUN", "CMD", "ADD", "VOLUME", "EXPOSE"}
    copies = [rest for word, rest in last if word == "COPY"]
    assert copies == ["--from=build /app /app"], "nothing of the build but the tree, owned by root"


def test_the_build_sees_what_it_copies_and_nothing_more() -> None:
    patterns = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    let_in = {pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")}
    copied = {
        source
        for word, rest in _steps("base AS build")
        if word == "COPY"
        for source in rest.split()[:-1]
        if not source.startswith("--")
    }
    assert let_in == copied
    assert all((REPOSITORY / source).exists() for source in copied)
    assert not [source for source in copied if fnmatch.fnmatch(source, "deploy/local*")], "stand-ins are no product"


@pytest.mark.parametrize("name", OF_THE_IMAGE)
def test_a_container_of_the_image_has_nothing_to_write_to_or_to_become(name: str) -> None:
    service = COMPOSE[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"user", "privileged", "tmpfs", "entrypoint"} & set(service)
    assert importlib.util.find_spec(f"{service['command'][0]}.__main__")
    for volume in service.get("volumes", ()):
        source, _, mode = volume.split(":")
        assert mode == "ro"
        assert (REPOSITORY / "deploy" / source).exists()


def test_ports_are_published_on_the_loopback_interface_only() -> None:
    ports = [port for service in COMPOSE.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.parametrize("service", SERVICES)
def test_compose_starts_a_service_after_its_migration_and_lets_it_end(service: str) -> None:
    container = COMPOSE[service]
    migration = f"migrate-{service}"
    assert container["depends_on"][migration] == {"condition": "service_completed_successfully"}
    assert COMPOSE[migration]["command"] == [f"services.{service}", "migrate"]
    assert COMPOSE[migration]["environment"] == container["environment"]
    settings = settings_of(service, _environment(container))
    assert f":{settings.ops_port}/readyz" in container["healthcheck"]["test"][-1]
    grace_seconds = float(container["stop_grace_period"].removesuffix("s"))
    assert seconds_to_end(settings, listens=service != "orchestrator") + MARGIN_SECONDS <= grace_seconds


def _environment(container: dict[str, Any]) -> dict[str, str]:
    return {name: DEFAULT.sub(r"\1", value) for name, value in container["environment"].items()}


@pytest.mark.parametrize(("service", "variable"), [("gateway", "MODELS_FILE"), ("billing", "PLANS_FILE")])
def test_compose_mounts_the_files_that_the_settings_name(service: str, variable: str) -> None:
    (volume,) = COMPOSE[service]["volumes"]
    source, target, _ = volume.split(":")
    assert target == COMPOSE[service]["environment"][variable]
    assert Path(source).suffix == ".toml"


def test_the_stand_ins_are_where_the_services_look_for_them() -> None:
    for standin, variable, service in (
        ("llm", "OPENAI_BASE_URL", "orchestrator"),
        ("stripe", "STRIPE_API_BASE", "billing"),
    ):
        command = " ".join(str(word) for word in COMPOSE[standin]["command"])
        port = re.search(r"--port[ =](\d+)", command)
        assert port
        assert _environment(COMPOSE[service])[variable].startswith(f"http://{standin}:{port.group(1)}")
    stripe = " ".join(COMPOSE["stripe"]["command"])
    assert "--webhook-url=http://billing:8082/webhooks/stripe" in stripe
    secrets = _environment(COMPOSE["billing"])["STRIPE_WEBHOOK_SECRETS"]
    assert f"--webhook-secret={secrets}" in stripe
