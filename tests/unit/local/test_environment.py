"""Which processes a local stack has, and what each is told."""

from collections.abc import Mapping

import pytest

from deploy.local.environment import Process, plan
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


def test_overrides_reach_a_service_or_one_of_its_replicas() -> None:
    processes = planned({}, {"gateway": 2}, gateway={"GRACE_SECONDS": "5"}, **{"gateway-2": {"LOG_LEVEL": "DEBUG"}})
    assert processes["gateway"].environ["GRACE_SECONDS"] == "5"
    assert "LOG_LEVEL" not in processes["gateway"].environ
    assert processes["gateway-2"].environ["GRACE_SECONDS"] == "5"
    assert processes["gateway-2"].environ["LOG_LEVEL"] == "DEBUG"
    assert "GRACE_SECONDS" not in processes["billing"].environ
