"""Nobody is killed while it drains: the settings' sum stays within the grace that Kubernetes and compose grant."""

import pytest

from services.orchestrator.config import Settings as OrchestratorSettings
from services.orchestrator.leases import HAND_BACK_SECONDS
from shared.config import ServiceSettings
from shared.runtime import STOP_SECONDS_MAX
from shared.tracing import FLUSH_SECONDS_MAX
from tests.deploy.manifests import SERVICES, Manifests, settings_of

MARGIN_SECONDS = 5.0
"""For a process that gets little CPU while it ends."""
RABBITMQ_CONSUMER_TIMEOUT_SECONDS = 1800.0
"""RabbitMQ's default: a delivery held longer than that costs its channel."""
RESTART_SECONDS_MAX = 300.0
"""What Kubernetes waits at most before it starts a container anew that ended again and again."""


def seconds_to_end(settings: ServiceSettings, *, listens: bool) -> float:
    """From SIGTERM to the end of the process, at the longest."""
    delay_seconds = settings.drain_delay_seconds if listens else 0.0
    return delay_seconds + settings.drain_seconds + STOP_SECONDS_MAX + FLUSH_SECONDS_MAX


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_ends_within_its_grace(manifests: Manifests, service: str) -> None:
    spec = manifests.pod(service).spec
    (container,) = spec["containers"]
    settings = settings_of(service, manifests.environment(container))
    listens = service in manifests.names("Service")
    # The grace period starts before the hook does, not after it.
    hook_seconds = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    ends_after_seconds = hook_seconds + seconds_to_end(settings, listens=listens)
    assert ends_after_seconds + MARGIN_SECONDS <= spec["terminationGracePeriodSeconds"]
    assert spec["terminationGracePeriodSeconds"] < RABBITMQ_CONSUMER_TIMEOUT_SECONDS
    assert not listens or hook_seconds + settings.drain_delay_seconds >= 5, "routes need time to take note"


def test_a_call_that_has_begun_fits_the_drain(manifests: Manifests) -> None:
    (container,) = manifests.pod("orchestrator").spec["containers"]
    settings = settings_of("orchestrator", manifests.environment(container))
    assert isinstance(settings, OrchestratorSettings)
    assert settings.attempt_seconds <= settings.drain_seconds - HAND_BACK_SECONDS


def test_a_first_install_is_waited_for_and_not_called_failed(manifests: Manifests) -> None:
    job = manifests.one("Job", "migrate")["spec"]
    waits = [float(container["args"][-1]) for container in job["template"]["spec"]["containers"]]
    assert max(waits) < job["activeDeadlineSeconds"], "a migration needs time too"
    for service in SERVICES:
        progress_seconds = manifests.one("Deployment", service)["spec"]["progressDeadlineSeconds"]
        assert job["activeDeadlineSeconds"] + RESTART_SECONDS_MAX < progress_seconds
