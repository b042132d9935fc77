"""Which processes a local stack has, and what each is told."""

import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from deploy.local import env_file
from deploy.local.environment import PortError, Process, check_gateway_port, plan
from deploy.local.secrets_file import Secrets

SECRETS = Secrets("token", "pepper", "sk_test_made", "whsec_made")
URLS = {"AMQP_URL": "amqp://broker", "BILLING_DATABASE_URL": "postgresql://db/billing"}


def planned(
    base: Mapping[str, str], replicas: Mapping[str, int] | None = None, **overrides: Mapping[str, str]
) -> dict[str, Process]:
    return plan(base, URLS, SECRETS, iter(range(20_000, 20_100)), replicas=replicas or {}, overrides=overrides)


def test_without_keys_both_stand_ins_are_part_of_the_stack() -> None:
    processes = planned({})
    assert list(processes) == ["llm", "stripe", "billing", "results", "orchestrator", "gateway"]
    assert processes["orchestrator"].environ["OPENAI_BASE_URL"] == processes["llm"].url + "/v1"
    assert processes["billing"].environ["STRIPE_API_BASE"] == processes["stripe"].url
    assert processes["billing"].url + "/webhooks/stripe" in processes["stripe"].arguments


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "OPENAI_BASE_URL", "MODELS_FILE"])
def test_a_provider_that_the_environment_names_is_used_unchanged(name: str) -> None:
    processes = planned({name: "given"})
    assert "llm" not in processes
    told = processes["orchestrator"].environ
    assert {key: told.get(key) for key in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MODELS_FILE") if key in told} == {
        name: "given"
    }


def test_a_stripe_key_in_the_environment_keeps_the_stand_in_away() -> None:
    processes = planned({"STRIPE_API_KEY": "sk_live_given"})
    assert "stripe" not in processes
    assert processes["billing"].environ["STRIPE_API_KEY"] == "sk_live_given"
    assert "STRIPE_API_BASE" not in processes["billing"].environ


def test_all_services_are_told_the_same_addresses_and_listen_where_they_say() -> None:
    processes = planned({})
    for name in ("billing", "results", "orchestrator", "gateway"):
        environ = processes[name].environ
        assert environ["BILLING_URL"] == processes["billing"].url
        assert environ["AMQP_URL"] == "amqp://broker"
        assert processes[name].url.endswith(":" + environ["HTTP_PORT"])
    ports = [process.environ.get("HTTP_PORT") or process.arguments[1] for process in processes.values()]
    assert len(set(ports)) == len(ports)


def test_the_api_has_the_port_that_somebody_wants_for_it() -> None:
    processes = planned({"GATEWAY_PORT": "8080"}, {"gateway": 2})
    assert processes["gateway"].url.endswith(":8080")
    assert processes["gateway"].environ["HTTP_PORT"] == "8080"
    assert processes["gateway"].environ["OPS_PORT"] != processes["gateway-2"].environ["HTTP_PORT"] != "8080"
    assert processes["orchestrator"].environ["GATEWAY_URL"] == processes["gateway"].url


@pytest.mark.parametrize(("port", "said"), [("abc", "must be a number"), ("70000", "must be a number")])
def test_a_port_that_is_none_is_refused_before_anything_is_started(port: str, said: str) -> None:
    with pytest.raises(PortError, match=said):
        check_gateway_port({"GATEWAY_PORT": port})


def test_a_port_that_is_taken_is_refused_and_a_free_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(PortError, match=f"{port}, where nobody can listen"):
            check_gateway_port({"GATEWAY_PORT": port})
    check_gateway_port({"GATEWAY_PORT": port})
    check_gateway_port({})


def test_what_an_earlier_start_exported_is_forgotten_and_what_somebody_set_since_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "env"
    env_file.write(file, tmp_path, {"AMQP_URL": "amqp://made", "PLANS_FILE": "/made", "STRIPE_API_KEY": "made, too"})
    exported = dict(
        line.removeprefix("export ").split("=", 1)
        for line in shlex.split(file.read_text(), comments=True)
        if "=" in line
    )
    assert exported["STRIPE_API_KEY"] == "made, too"
    told = {**exported, "PLANS_FILE": "/mine", "PATH": "/bin"}
    assert env_file.without_own(told) == {"PLANS_FILE": "/mine", "PATH": "/bin"}


def test_overrides_reach_a_service_or_one_of_its_replicas() -> None:
    processes = planned({}, {"gateway": 2}, gateway={"GRACE_SECONDS": "5"}, **{"gateway-2": {"LOG_LEVEL": "DEBUG"}})
    assert processes["gateway"].environ["GRACE_SECONDS"] == "5"
    assert "LOG_LEVEL" not in processes["gateway"].environ
    assert processes["gateway-2"].environ["GRACE_SECONDS"] == "5"
    assert processes["gateway-2"].environ["LOG_LEVEL"] == "DEBUG"
    assert "GRACE_SECONDS" not in processes["billing"].environ
