"""The settings of results."""

from __future__ import annotations

from pydantic import Field

from shared.config import Dsn, ServiceSettings


class Settings(ServiceSettings):
    """Read from the environment once, at the start."""

    http_port: int = Field(default=8083, ge=1, le=65535)
    ops_port: int = Field(default=9083, ge=1, le=65535)
    database_url: Dsn = Field(validation_alias="RESULTS_DATABASE_URL")
    output_bytes_max: int = Field(default=4 * 1024 * 1024, ge=1024, le=64 * 1024 * 1024)
