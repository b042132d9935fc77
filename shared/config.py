"""Settings: read from the environment once, frozen, every problem reported at once, no value in any message."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, create_model
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _require_scheme(*schemes: str) -> BeforeValidator:
    def check(value: object) -> object:
        if isinstance(value, str) and not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
            raise ValueError(f"must be a URL that starts with {' or '.join(f'{scheme}://' for scheme in schemes)}")
        return value

    return BeforeValidator(check)


def _require_escapes(value: object) -> object:
    # Left to the drivers, the part of a password before a bare slash is taken for the port, and quoted as a wrong one.
    if isinstance(value, str) and "@" in "".join(urlsplit(value)[2:]):
        raise ValueError("must have @ / ? # in its user and password written as %40 %2F %3F %23")
    return value


def _strip_slash(value: object) -> object:
    return value.rstrip("/") if isinstance(value, str) else value


Dsn = Annotated[SecretStr, BeforeValidator(_require_escapes), _require_scheme("postgresql", "postgres")]
AmqpUrl = Annotated[SecretStr, BeforeValidator(_require_escapes), _require_scheme("amqp", "amqps")]
BaseUrl = Annotated[str, BeforeValidator(_strip_slash), _require_scheme("http", "https")]
CommaSeparatedSecrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_commas)]


class Environment(BaseSettings):
    """Settings as they are read everywhere."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True, populate_by_name=True)

    @classmethod
    def further_problems(cls, environ: Mapping[str, str]) -> list[str]:
        """What is wrong with configuration that no field holds: files, and the variables that they name."""
        return []


class ServiceSettings(Environment):
    """What all four services read."""

    amqp_url: AmqpUrl
    service_token: SecretStr = Field(min_length=16)
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    http_host: str = "0.0.0.0"  # noqa: S104 - in a container every interface is the pod's own
    http_port: int = Field(ge=1, le=65535)
    ops_port: int = Field(ge=1, le=65535)
    # The time budget of an end: DRAIN_DELAY_SECONDS, then DRAIN_SECONDS, then 10 s to flush and close whatever does not
    # answer. A grace after which somebody kills (terminationGracePeriodSeconds) must be at least
    # DRAIN_DELAY_SECONDS + DRAIN_SECONDS + 20, the last 10 of them margin: 50 by default.
    drain_delay_seconds: float = Field(default=5.0, ge=0, le=120)
    """From SIGTERM until the listener closes: not ready, still serving, until those who route here have noticed."""
    drain_seconds: float = Field(default=25.0, ge=0, le=3600)
    """For what is under way by then; what does not fit is cut, and handed back where somebody else can go on."""
    database_pool_max: int = Field(default=10, ge=2, le=100)
    otel_exporter_otlp_endpoint: str = ""
    """The collector of traces, over HTTP; empty takes none. Its other settings are the SDK's own: OTEL_*."""
    failpoints: str = ""
    """For tests of crashes only: see shared/failpoints.py."""


SettingsType = TypeVar("SettingsType", bound=Environment)


def load(settings_class: type[SettingsType]) -> SettingsType:
    """The settings of this process; where they are wrong, every problem on a line of its own and exit status 2."""
    problems, settings = settings_class.further_problems(os.environ), None
    try:
        settings = settings_class()
    except ValidationError as error:
        problems = describe_problems(error) + problems
    if settings is not None and not problems:
        return settings
    sys.stderr.write("The configuration is not usable:\n")
    sys.stderr.writelines(f"  {problem}\n" for problem in problems)
    raise SystemExit(2)


def load_only(settings_class: type[Environment], *names: str) -> Any:
    """The settings of these names alone, for a command that uses no others."""
    fields = {name: (field.annotation, field) for name, field in settings_class.model_fields.items() if name in names}
    return load(create_model("Part", __base__=Environment, **fields))  # type: ignore[call-overload]


def describe_problems(error: ValidationError) -> list[str]:
    """One line for each problem: the variable's name and what is wrong, never its value."""
    return [
        f"{'.'.join(str(part) for part in problem['loc']).upper()}: {_message_of(problem)}"
        for problem in error.errors(include_input=False, include_url=False)
    ]


def _message_of(problem: ErrorDetails) -> str:
    if problem["type"] == "too_short":  # pydantic counts the items of a secret
        return f"must have at least {problem['ctx']['min_length']} characters"
    return problem["msg"].removeprefix("Value error, ")


def secret_variables(names: Iterable[str]) -> dict[str, SecretStr]:
    """Those of the named variables that are set: for secrets whose names are themselves configuration."""
    return {name: SecretStr(os.environ[name]) for name in names if os.environ.get(name)}
