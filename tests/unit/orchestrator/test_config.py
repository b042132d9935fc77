"""Settings and the models file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.orchestrator.config import Settings, load_models, provider_keys
from shared.config import load, load_only

LOCAL_MODELS = Path(__file__).parents[3] / "deploy/local/models.toml"


def settings(**changes: object) -> Settings:
    fields: dict[str, object] = {
        "amqp_url": SecretStr("amqp://localhost"),
        "service_token": SecretStr("a-token-for-the-tests"),
        "database_url": SecretStr("postgresql://localhost/x"),
        "billing_url": "http://localhost:1/",
        "results_url": "http://localhost:2",
        "openai_api_key": SecretStr("sk-one"),
    }
    return Settings(**fields | changes)  # type: ignore[arg-type]


def test_without_a_file_there_is_one_model_at_openai() -> None:
    models = load_models(settings(openai_model="m-9"))
    (deployment,) = models.deployments()
    assert (deployment.model, deployment.quota_domain, deployment.requests_per_minute) == ("m-9", "openai", None)


def test_the_local_file_is_usable() -> None:
    assert "default" in load_models(settings(models_file=LOCAL_MODELS)).models


@pytest.mark.parametrize("contents", ["[models", "[models.default]\ndeployments = []", "[models.other]", ""])
def test_a_file_that_cannot_be_used_ends_the_process_and_says_why(
    contents: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "models.toml"
    path.write_text(contents)
    with pytest.raises(SystemExit):
        load_models(settings(models_file=path))
    assert str(path) in capsys.readouterr().err


def test_a_file_that_is_not_there_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        load_models(settings(models_file=tmp_path / "none.toml"))


def test_keys_come_from_the_variables_that_deployments_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "models.toml"
    path.write_text(LOCAL_MODELS.read_text().replace("OPENAI_API_KEY", "OTHER_KEY"))
    monkeypatch.setenv("OTHER_KEY", "sk-two")
    used = settings(models_file=path)
    keys = provider_keys(used, load_models(used))
    assert keys["OTHER_KEY"].get_secret_value() == "sk-two"
    assert keys["OPENAI_API_KEY"].get_secret_value() == "sk-one"


def test_a_key_that_is_missing_is_told_with_all_other_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "models.toml"
    path.write_text(LOCAL_MODELS.read_text().replace("OPENAI_API_KEY", "OTHER_KEY"))
    monkeypatch.setenv("MODELS_FILE", str(path))
    monkeypatch.setenv("OTHER_KEY", "")
    with pytest.raises(SystemExit) as ended:
        load(Settings)
    told = [line.split(":")[0].strip() for line in capsys.readouterr().err.splitlines()[1:]]
    assert ended.value.code == 2
    assert {"AMQP_URL", "BILLING_URL", "OTHER_KEY"} <= set(told)
    monkeypatch.setenv("OTHER_KEY", "sk-two")
    assert Settings.further_problems(os.environ) == []


def test_a_models_file_that_cannot_be_used_is_told_with_all_other_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELS_FILE", "/no/such/file")
    with pytest.raises(SystemExit):
        load(Settings)
    told = capsys.readouterr().err
    assert "MODELS_FILE: [Errno 2]" in told
    assert "BILLING_URL: Field required" in told


def test_without_a_file_the_key_of_openai_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert [problem.split(":")[0] for problem in Settings.further_problems(os.environ)] == ["OPENAI_API_KEY"]


def test_a_command_needs_the_settings_that_it_uses_and_no_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "postgresql://localhost/x")
    part = load_only(Settings, "database_url", "log_level")
    assert (part.database_url.get_secret_value(), part.log_level) == ("postgresql://localhost/x", "INFO")
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "mysql://localhost/x")
    with pytest.raises(SystemExit):
        load_only(Settings, "database_url", "log_level")
    assert capsys.readouterr().err.count("\n") == 2, "the one problem below the heading"
