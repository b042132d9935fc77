"""The orchestrator's settings and its MODELS_FILE."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError

from services.orchestrator.providers.openai import CallBounds
from services.orchestrator.routing import Deployment, Model, Models
from shared.config import BaseUrl, Dsn, ServiceSettings, describe_problems, secret_variables


class Settings(ServiceSettings):
    """Read from the environment; names are the fields' in upper case."""

    database_url: Dsn = Field(validation_alias="ORCHESTRATOR_DATABASE_URL")
    http_port: int = Field(default=8081, ge=1, le=65535)
    ops_port: int = Field(default=9081, ge=1, le=65535)
    billing_url: BaseUrl
    results_url: BaseUrl
    models_file: Path | None = None
    openai_api_key: SecretStr | None = None
    openai_base_url: BaseUrl = "https://api.openai.com/v1"
    openai_model: str = "gpt-4o-mini"
    slots: int = Field(default=500, ge=1, le=10_000)
    lease_seconds: float = Field(default=15, ge=1, le=300)
    attempts_max: int = Field(default=10, ge=1, le=1000)
    output_bytes_max: int = Field(default=4 * 2**20, ge=1024, le=32 * 2**20)
    connect_seconds: float = Field(default=5, gt=0, le=60)
    attempt_seconds: float = Field(default=120, gt=0, le=7200)
    first_token_seconds: float = Field(default=30, gt=0, le=3600)
    stall_seconds: float = Field(default=20, gt=0, le=3600)
    retention_days: int = Field(default=7, ge=2, le=3650)

    @classmethod
    def further_problems(cls, environ: Mapping[str, str]) -> list[str]:
        """Of MODELS_FILE, and the keys that its deployments name."""
        users = {"OPENAI_API_KEY": "default"}
        if path := environ.get("MODELS_FILE"):
            models = _read_models(Path(path))
            if isinstance(models, list):
                return [f"MODELS_FILE: {problem}" for problem in models]
            users = {deployment.key_variable: deployment.name for deployment in models.deployments()}
        return [
            f"{name}: must be set: it is the key of deployment {users[name]} (any word, where its server asks for none)"
            for name in sorted(users)
            if not environ.get(name)
        ]

    @property
    def call_bounds(self) -> CallBounds:
        return CallBounds(
            connect_seconds=self.connect_seconds,
            first_token_seconds=self.first_token_seconds,
            stall_seconds=self.stall_seconds,
            total_seconds=self.attempt_seconds,
            output_bytes_max=self.output_bytes_max,
        )


def load_models(settings: Settings) -> Models:
    """The models of MODELS_FILE, or one named `default`; a file that cannot be used ends the process, saying why."""
    if settings.models_file is None:
        only = Deployment(name="default", provider="openai", model=settings.openai_model, quota_domain="openai")
        return Models(models={"default": Model(deployments=(only,))})
    models = _read_models(settings.models_file)
    if isinstance(models, Models):
        return models
    sys.stderr.write(f"MODELS_FILE ({settings.models_file}) is not usable:\n")
    sys.stderr.writelines(f"  {problem}\n" for problem in models)
    raise SystemExit(2)


def _read_models(path: Path) -> Models | list[str]:
    """The models, or what is wrong with the file."""
    try:
        return Models.model_validate(tomllib.loads(path.read_text()))
    except (OSError, tomllib.TOMLDecodeError) as error:
        return [str(error)]
    except ValidationError as error:
        return describe_problems(error)


def provider_keys(settings: Settings, models: Models) -> Mapping[str, SecretStr]:
    """The keys that the deployments name, by the name of their variable."""
    keys = secret_variables({deployment.key_variable for deployment in models.deployments()})
    return keys if settings.openai_api_key is None else {"OPENAI_API_KEY": settings.openai_api_key} | keys
