"""Which processes make a stack, and the environment of each: pure, so that the whole wiring can be read at once."""

import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.secrets_file import Secrets

LOCAL = Path(__file__).parent
REPOSITORY = LOCAL.parents[1]
SERVICES = ("billing", "results", "orchestrator", "gateway")
HOST = "127.0.0.1"
LLM, STRIPE = "llm", "stripe"


@dataclass(frozen=True)
class Process:
    """One process of a stack. `ops_url` is a service's health and metrics, or a stand-in's control port."""

    name: str
    module: str
    arguments: tuple[str, ...]
    environ: Mapping[str, str]
    url: str
    ops_url: str
    ready_path: str

    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments]

    def ready_url(self) -> str:
        return self.ops_url + self.ready_path


class PortError(Exception):
    """The API cannot be served where somebody wants it."""


def check_gateway_port(base: Mapping[str, str]) -> None:
    """Before anything is started for it."""
    port = base.get("GATEWAY_PORT")
    if not port:
        return
    if not (port.isdecimal() and 0 < int(port) < 65536):
        raise PortError(f"GATEWAY_PORT is {port}: it must be a number from 1 to 65535")
    try:
        socket.create_server((HOST, int(port))).close()
    except OSError as error:
        raise PortError(f"GATEWAY_PORT is {port}, where nobody can listen: {error.strerror}") from error


def needs_llm(base: Mapping[str, str]) -> bool:
    """A key, another server's address, or a file that names deployments: then the provider is somebody's choice."""
    return not any(base.get(name) for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MODELS_FILE"))


def needs_stripe(base: Mapping[str, str]) -> bool:
    return not base.get("STRIPE_API_KEY")


def plan(
    base: Mapping[str, str],
    urls: Mapping[str, str],
    secrets: Secrets,
    ports: Iterator[int],
    *,
    replicas: Mapping[str, int],
    overrides: Mapping[str, Mapping[str, str]],
) -> dict[str, Process]:
    """The processes by name, in the order in which they start; a second gateway is called `gateway-2`."""
    names = [
        service if number == 1 else f"{service}-{number}"
        for service in SERVICES
        for number in range(1, replicas.get(service, 1) + 1)
    ]
    addresses = {name: (str(next(ports)), str(next(ports))) for name in names}
    if own := base.get("GATEWAY_PORT"):
        addresses["gateway"] = (own, addresses["gateway"][1])
    standins = dict(_standins(base, secrets, ports, addresses["billing"][0]))
    shared = {
        # Nobody routes here who would have to notice that a process is about to end.
        "DRAIN_DELAY_SECONDS": "0",
        **base,
        **_defaults(base, secrets),
        **urls,
        **_outside(base, standins),
        **{f"{service.upper()}_URL": f"http://{HOST}:{addresses[service][0]}" for service in SERVICES},
        "HTTP_HOST": HOST,
        "PYTHONUNBUFFERED": "1",
    }
    services = {}
    for name, (http_port, ops_port) in addresses.items():
        service = name.partition("-")[0]
        environ = {**shared, "HTTP_PORT": http_port, "OPS_PORT": ops_port}
        environ.update(overrides.get(service, {}))
        environ.update(overrides.get(name, {}))
        services[name] = Process(
            name,
            f"services.{service}",
            (),
            environ,
            url=f"http://{HOST}:{http_port}",
            ops_url=f"http://{HOST}:{ops_port}",
            ready_path="/readyz",
        )
    return standins | services


def _defaults(base: Mapping[str, str], secrets: Secrets) -> dict[str, str]:
    made = {
        "SERVICE_TOKEN": secrets.service_token,
        "API_KEY_PEPPER": secrets.api_key_pepper,
        "STRIPE_API_KEY": secrets.stripe_api_key,
        "STRIPE_WEBHOOK_SECRETS": secrets.stripe_webhook_secret,
        "PLANS_FILE": str(LOCAL / "plans.toml"),
    }
    return {name: base.get(name) or value for name, value in made.items()}


def _outside(base: Mapping[str, str], standins: Mapping[str, Process]) -> dict[str, str]:
    """Where the services find the provider and Stripe, as far as stand-ins play them."""
    found = {}
    if LLM in standins:
        found["OPENAI_BASE_URL"] = f"{standins[LLM].url}/v1"
        found["OPENAI_API_KEY"] = "sk-stand-in"
        found["MODELS_FILE"] = str(LOCAL / "models.toml")
    if STRIPE in standins:
        found["STRIPE_API_BASE"] = standins[STRIPE].url
    return found


def _standins(
    base: Mapping[str, str], secrets: Secrets, ports: Iterator[int], billing_port: str
) -> Iterator[tuple[str, Process]]:
    if needs_llm(base):
        yield LLM, _standin(base, LLM, next(ports), next(ports))
    if needs_stripe(base):
        webhooks = f"http://{HOST}:{billing_port}/webhooks/stripe"
        signed = ("--webhook-url", webhooks, "--webhook-secret", secrets.stripe_webhook_secret)
        yield STRIPE, _standin(base, STRIPE, next(ports), next(ports), *signed)


def _standin(base: Mapping[str, str], name: str, port: int, control_port: int, *arguments: str) -> Process:
    return Process(
        name,
        f"deploy.local.standins.{name}",
        ("--port", str(port), "--control-port", str(control_port), *arguments),
        {**base, "PYTHONUNBUFFERED": "1"},
        url=f"http://{HOST}:{port}",
        ops_url=f"http://{HOST}:{control_port}",
        ready_path="/health",
    )
