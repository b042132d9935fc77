"""PostgreSQL and RabbitMQ are told what Parley counts on: connections, a synchronous standby, limits of queues."""

import re
from typing import cast

import yaml

from services.orchestrator.config import Settings as OrchestratorSettings
from services.orchestrator.task import NEXT
from shared.messaging.consumer import REDELIVERIES_MAX
from shared.messaging.topology import QUEUES
from tests.deploy.manifests import REPOSITORY, SERVICES, Manifests, Object, settings_of
from tests.deploy.test_time_budget import seconds_to_end

RESERVED_CONNECTIONS = 20
"""For the superuser, the operator and an operator's own look."""
MIGRATION_CONNECTIONS = 2


def test_every_pool_at_its_largest_fits_the_servers_connections(manifests: Manifests) -> None:
    needed = RESERVED_CONNECTIONS + len(SERVICES) * MIGRATION_CONNECTIONS
    for service in SERVICES:
        (container,) = manifests.pod(service).spec["containers"]
        deployment = manifests.one("Deployment", service)["spec"]
        settings = settings_of(service, manifests.environment(container))
        replicas = _replicas_max(manifests, service)
        # A rollout does not wait for pods that drain: where that is longer than a start, all the old ones may be there.
        starts_seconds = deployment["minReadySeconds"] + container["readinessProbe"]["periodSeconds"]
        drains_longer = seconds_to_end(settings, listens=service in manifests.names("Service")) > starts_seconds
        besides = replicas if drains_longer else deployment["strategy"]["rollingUpdate"]["maxSurge"]
        needed += (replicas + besides) * settings.database_pool_max
    parameters = manifests.one("Cluster", "postgres")["spec"]["postgresql"]["parameters"]
    assert needed <= int(parameters["max_connections"])


def _replicas_max(manifests: Manifests, service: str) -> int:
    scalers = [*manifests.of("HorizontalPodAutoscaler"), *manifests.of("ScaledObject")]
    return max(
        int(scaler["spec"].get("maxReplicas") or scaler["spec"]["maxReplicaCount"])
        for scaler in scalers
        if scaler["metadata"]["name"] == service
    )


def test_a_commit_waits_for_a_standby_and_three_machines_hold_it(manifests: Manifests) -> None:
    spec = manifests.one("Cluster", "postgres")["spec"]
    assert spec["instances"] == 3
    assert spec["postgresql"]["synchronous"] == {"method": "any", "number": 1, "dataDurability": "required"}
    assert spec["affinity"] == {"podAntiAffinityType": "required", "topologyKey": "kubernetes.io/hostname"}


def test_each_service_owns_a_database_by_the_secret_it_reads(manifests: Manifests) -> None:
    roles = {role["name"]: role for role in manifests.one("Cluster", "postgres")["spec"]["managed"]["roles"]}
    for service in SERVICES:
        database = manifests.one("Database", service)["spec"]
        assert (database["cluster"]["name"], database["name"], database["owner"]) == ("postgres", service, service)
        assert database["databaseReclaimPolicy"] == "retain"
        (container,) = manifests.pod(service).spec["containers"]
        (dsn,) = (v for v in container["env"] if v["name"] == f"{service.upper()}_DATABASE_URL")
        assert dsn["valueFrom"]["secretKeyRef"]["name"] == roles[service]["passwordSecret"]["name"]
        assert not roles[service].get("superuser")


def test_the_services_verify_the_database_by_the_operators_authority(manifests: Manifests) -> None:
    if not manifests.rendered:
        return  # the mounts are a patch
    for pod in manifests.pods():
        (volume,) = (v for v in pod.spec["volumes"] if v["name"] == "postgres-ca")
        for container in pod.spec["containers"]:
            environ = manifests.environment(container)
            assert environ["PGSSLMODE"] == "verify-full"
            (mount,) = (m for m in container["volumeMounts"] if m["name"] == "postgres-ca")
            assert environ["PGSSLROOTCERT"] == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"


def test_quorum_queues_have_their_three_nodes_and_large_messages_pass(manifests: Manifests) -> None:
    spec = manifests.one("RabbitmqCluster", "rabbitmq")["spec"]
    assert spec["replicas"] == 3
    assert spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert manifests.one("PodDisruptionBudget", "rabbitmq")["spec"]["maxUnavailable"] == 1
    config = dict(re.findall(r"^(\S+) = (.+)$", spec["rabbitmq"]["additionalConfig"], re.MULTILINE))
    membership = "quorum_queue.continuous_membership_reconciliation"
    assert config[f"{membership}.enabled"] == "true", "a queue that one node made has one replica for ever"
    assert config[f"{membership}.target_group_size"] == "3"
    assert config[f"{membership}.auto_remove"] == "false"
    compose = yaml.safe_load((REPOSITORY / "deploy" / "compose.yaml").read_text())["services"]["rabbitmq"]
    assert compose["environment"]["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"] == (
        f"-rabbit max_message_size {config['max_message_size']}"
    )


def test_the_broker_drops_no_message_that_a_consumer_would_park(manifests: Manifests) -> None:
    policy = manifests.one("Policy", "durable-queues")["spec"]
    assert policy["definition"]["delivery-limit"] > 2 * REDELIVERIES_MAX
    assert policy["applyTo"] == "quorum_queues"
    for queue in QUEUES:
        assert re.search(policy["pattern"], queue.name), queue.name


def test_subscribers_queues_are_bounded_and_ours_are_not(manifests: Manifests) -> None:
    policy = manifests.one("Policy", "subscribers")["spec"]
    assert policy["definition"]["overflow"] == "drop-head"
    assert {"max-length", "max-length-bytes", "expires"} <= set(policy["definition"])
    assert re.search(policy["pattern"], "ext.shop.results")
    assert not [queue.name for queue in QUEUES if re.search(policy["pattern"], queue.name)]


def test_the_orchestrator_scales_on_the_queue_it_consumes_by_its_slots(manifests: Manifests) -> None:
    trigger = _trigger(manifests, "rabbitmq")
    (queue,) = (queue for queue in QUEUES if "session.requested" in queue.bindings)
    assert trigger["metadata"]["queueName"] == queue.name
    assert trigger["metadata"]["protocol"] == "http", "amqp does not see what is delivered and not yet acknowledged"
    assert int(trigger["metadata"]["value"]) == _slots(manifests)


def test_full_orchestrators_ask_for_more_of_them(manifests: Manifests) -> None:
    trigger = _trigger(manifests, "postgresql")
    # An autoscaler leaves a tenth more or less as it is.
    assert _slots(manifests) / int(trigger["metadata"]["targetQueryValue"]) > 1.1
    states = set(re.findall(r"'(\w+)'", trigger["metadata"]["query"]))
    assert states == set(NEXT) - {"finished"}
    (secret,) = manifests.one("TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]["secretTargetRef"]
    assert secret["parameter"] == "connection"
    (container,) = manifests.pod("orchestrator").spec["containers"]
    (dsn,) = (v for v in container["env"] if v["name"] == "ORCHESTRATOR_DATABASE_URL")
    assert {name: secret[name] for name in ("name", "key")} == dsn["valueFrom"]["secretKeyRef"]


def _trigger(manifests: Manifests, kind: str) -> Object:
    triggers = manifests.one("ScaledObject", "orchestrator")["spec"]["triggers"]
    (trigger,) = (trigger for trigger in triggers if trigger["type"] == kind)
    assert trigger["authenticationRef"]["name"] in manifests.names("TriggerAuthentication")
    return cast("Object", trigger)


def _slots(manifests: Manifests) -> int:
    (container,) = manifests.pod("orchestrator").spec["containers"]
    settings = settings_of("orchestrator", manifests.environment(container))
    assert isinstance(settings, OrchestratorSettings)
    return settings.slots
