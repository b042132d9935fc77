"""Billing's settings, from the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, SecretStr

from services.billing.policy import PolicyInvalid, load_policy
from shared.config import BaseUrl, CommaSeparatedSecrets, Dsn, ServiceSettings


class Settings(ServiceSettings):
    """What billing reads beyond the common ones."""

    http_port: int = Field(default=8082, ge=1, le=65535)
    ops_port: int = Field(default=9082, ge=1, le=65535)

    database_url: Dsn = Field(validation_alias="BILLING_DATABASE_URL")
    stripe_api_key: SecretStr = Field(min_length=1)
    stripe_api_base: BaseUrl = "https://api.stripe.com"
    stripe_webhook_secrets: CommaSeparatedSecrets = Field(min_length=1, max_length=10)
    plans_file: Path

    stripe_workers: int = Field(default=3, ge=1, le=20)
    """Events looked at in Stripe at once; each holds a database connection meanwhile."""
    event_attempts_max: int = Field(default=100, ge=1, le=10_000)
    event_backoff_seconds_max: float = Field(default=300, ge=1, le=86_400)
    reconcile_seconds: float = Field(default=900, ge=1, le=86_400)
    """Between two comparisons of our facts with Stripe's lists."""
    sweep_seconds: float = Field(default=5, ge=0.05, le=300)
    """Between two looks for decisions and holds whose time has come."""

    @classmethod
    def further_problems(cls, environ: Mapping[str, str]) -> list[str]:
        """Of PLANS_FILE."""
        if path := environ.get("PLANS_FILE"):
            try:
                load_policy(Path(path), livemode=False)
            except PolicyInvalid as error:
                return [f"PLANS_FILE: {problem}" for problem in error.problems]
        return []

    @property
    def livemode(self) -> bool:
        """Which of Stripe's two worlds the key opens."""
        return self.stripe_api_key.get_secret_value().startswith(("sk_live_", "rk_live_"))
