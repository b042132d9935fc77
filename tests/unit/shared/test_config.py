"""Settings: every problem at once, no value in any of them."""

import pytest

from shared.config import BaseUrl, CommaSeparatedSecrets, Dsn, ServiceSettings, load


class Settings(ServiceSettings):
    """A service's settings as an example."""

    http_port: int = 8080
    ops_port: int = 9080
    example_database_url: Dsn
    peer_url: BaseUrl
    example_secrets: CommaSeparatedSecrets = ()


GOOD = {
    "AMQP_URL": "amqp://guest:guest@localhost:5672/",
    "SERVICE_TOKEN": "0123456789abcdef",
    "EXAMPLE_DATABASE_URL": "postgresql://me:secret@localhost/example",
    "PEER_URL": "http://localhost:8081/",
}


def _set(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in GOOD:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_good_settings_are_read_frozen_and_hide_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, {**GOOD, "EXAMPLE_SECRETS": "whsec_a, whsec_b"})
    settings = load(Settings)
    assert settings.peer_url == "http://localhost:8081"
    assert [secret.get_secret_value() for secret in settings.example_secrets] == ["whsec_a", "whsec_b"]
    assert "secret@" not in repr(settings)
    with pytest.raises(ValueError, match="frozen"):
        settings.http_port = 1  # type: ignore[misc]


def test_every_problem_is_reported_at_once_and_none_tells_a_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _set(
        monkeypatch,
        {
            "AMQP_URL": "redis://user:canary@host",
            "SERVICE_TOKEN": "canary",
            "EXAMPLE_DATABASE_URL": "mysql://user:canary@host/db",
            "HTTP_PORT": "canary",
        },
    )
    with pytest.raises(SystemExit) as exited:
        load(Settings)
    told = capsys.readouterr().err
    assert exited.value.code == 2
    for name in ("AMQP_URL", "SERVICE_TOKEN", "EXAMPLE_DATABASE_URL", "PEER_URL", "HTTP_PORT"):
        assert name in told
    assert "canary" not in told
