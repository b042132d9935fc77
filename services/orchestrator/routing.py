"""Public model names -> deployments: the order in which they are tried, fallbacks, and which ones rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.orchestrator.limiter import Limits, Place
from services.orchestrator.task import FailureKind

FAILURES_BEFORE_REST: Final = 5
REST_SECONDS: Final[Mapping[FailureKind, float]] = {"quota_exhausted": 300.0, "unauthorized": 60.0, "not_found": 60.0}
REST_SECONDS_AFTER_FAILURES: Final = 10.0


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timeouts(_Config):
    """Bounds of one call, in seconds. What is absent is the service's setting."""

    connect_seconds: float | None = Field(default=None, gt=0, le=60)
    first_token_seconds: float | None = Field(default=None, gt=0, le=3600)
    stall_seconds: float | None = Field(default=None, gt=0, le=3600)
    total_seconds: float | None = Field(default=None, gt=0, le=7200)


class Deployment(_Config):
    """One upstream that can serve a model."""

    name: str = Field(min_length=1, max_length=64)
    provider: Literal["openai"]
    model: str = Field(min_length=1, max_length=128)
    base_url: str | None = Field(default=None, pattern=r"^https?://")
    key_variable: str = Field(default="OPENAI_API_KEY", pattern=r"^[A-Z][A-Z0-9_]*$")
    quota_domain: str = Field(min_length=1, max_length=64)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    input_microcents_per_token: int = Field(default=0, ge=0)
    output_microcents_per_token: int = Field(default=0, ge=0)
    timeouts: Timeouts = Timeouts()

    @property
    def limits(self) -> Limits:
        return Limits(self.requests_per_minute, self.tokens_per_minute)


class Model(_Config):
    """A public model name: where it may run, in order of preference."""

    max_output_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    deployments: tuple[Deployment, ...] = Field(min_length=1)


class Models(_Config):
    """The whole MODELS_FILE."""

    models: Mapping[str, Model]

    @model_validator(mode="after")
    def _consistent(self) -> Models:
        if "default" not in self.models:
            raise ValueError("there must be a model named default")
        limits: dict[str, Limits] = {}
        by_name: dict[str, Deployment] = {}
        for deployment in self.deployments():
            if by_name.setdefault(deployment.name, deployment) != deployment:
                raise ValueError(f"two different deployments are named {deployment.name}")
            if limits.setdefault(deployment.quota_domain, deployment.limits) != deployment.limits:
                raise ValueError(f"deployments of quota domain {deployment.quota_domain} name different limits")
        return self

    def deployments(self) -> list[Deployment]:
        return [deployment for model in self.models.values() for deployment in model.deployments]


class Routing:
    """Chooses deployments. What rests is known here and shared with the other replicas through the store."""

    def __init__(self, models: Models) -> None:
        self._models = models.models
        self._by_name = {deployment.name: deployment for deployment in models.deployments()}
        self._failures_in_a_row: dict[str, int] = {}
        self._resting_until: dict[str, datetime] = {}

    @property
    def deployment_names(self) -> Collection[str]:
        return self._by_name.keys()

    @property
    def limits(self) -> Mapping[str, Limits]:
        """Of every quota domain."""
        return {deployment.quota_domain: deployment.limits for deployment in self._by_name.values()}

    def model(self, name: str) -> Model | None:
        return self._models.get(name)

    def deployment(self, name: str) -> Deployment:
        return self._by_name[name]

    def candidates(
        self, model: str, now: datetime, *, dead: Collection[str] = (), tried: Collection[str] = ()
    ) -> list[Deployment]:
        """Where the next attempt may go: untried and rested ones first, `dead` ones never."""
        known = self._models[model].deployments if model in self._models else ()
        usable = [deployment for deployment in known if deployment.name not in dead]
        return sorted(usable, key=lambda deployment: (deployment.name in tried, self._rests(deployment.name, now)))

    def rest_seconds(self, deployment: str, kind: FailureKind) -> float | None:
        """Count a failure; for how long nobody should go there, if so."""
        failures = self._failures_in_a_row[deployment] = self._failures_in_a_row.get(deployment, 0) + 1
        if kind in REST_SECONDS:
            return REST_SECONDS[kind]
        # Its quota domain's bucket keeps a rate limit; an answer against the format says nothing about the upstream.
        if kind in ("rate_limited", "invalid_output", "rejected", "too_large"):
            return None
        return REST_SECONDS_AFTER_FAILURES if failures >= FAILURES_BEFORE_REST else None

    def succeeded(self, deployment: str) -> None:
        self._failures_in_a_row.pop(deployment, None)

    def rest(self, deployment: str, until: datetime) -> None:
        self._resting_until[deployment] = until

    def set_resting(self, resting: Mapping[str, datetime]) -> None:
        """What all replicas together know."""
        self._resting_until = dict(resting)

    def _rests(self, deployment: str, now: datetime) -> bool:
        until = self._resting_until.get(deployment)
        return until is not None and until > now


def places(deployments: Sequence[Deployment]) -> list[Place]:
    return [Place(deployment.name, deployment.quota_domain) for deployment in deployments]
