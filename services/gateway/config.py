"""The gateway's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr

from services.gateway.models import ModelsFileUnreadable, read_model_names
from shared.config import BaseUrl, Dsn, ServiceSettings


class Settings(ServiceSettings):
    """Read from the environment once, in `app.py`."""

    http_port: int = Field(default=8080, ge=1, le=65535)
    ops_port: int = Field(default=9080, ge=1, le=65535)
    database_url: Dsn = Field(validation_alias="GATEWAY_DATABASE_URL")
    billing_url: BaseUrl
    results_url: BaseUrl
    api_key_pepper: SecretStr = Field(min_length=16)
    models_file: Path | None = None
    grace_seconds: float = Field(default=30.0, ge=5, le=3600)
    deadline_seconds: int = Field(default=600, ge=1, le=86_400)
    input_bytes_max: int = Field(default=1024 * 1024, ge=1024, le=16 * 1024 * 1024)
    session_queue_max: int = Field(default=100, ge=1, le=10_000)
    account_queue_max: int = Field(default=10_000, ge=1, le=1_000_000)
    waiters_max: int = Field(default=5_000, ge=1, le=100_000)

    @classmethod
    def further_problems(cls, environ: Mapping[str, str]) -> list[str]:
        """Of MODELS_FILE."""
        try:
            read_model_names(Path(path) if (path := environ.get("MODELS_FILE")) else None)
        except ModelsFileUnreadable as error:
            return [str(error)]
        return []
