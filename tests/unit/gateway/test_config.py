"""The gateway's settings."""

from __future__ import annotations

import pytest

from services.gateway.config import Settings
from shared.config import load


def test_a_models_file_that_cannot_be_used_is_told_with_all_other_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MODELS_FILE", "/no/such/file")
    monkeypatch.delenv("BILLING_URL", raising=False)
    with pytest.raises(SystemExit):
        load(Settings)
    told = capsys.readouterr().err
    assert "MODELS_FILE /no/such/file cannot be read" in told
    assert "BILLING_URL: Field required" in told
