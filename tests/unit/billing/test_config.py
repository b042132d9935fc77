"""Billing's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.billing.config import Settings
from shared.config import load


def test_a_plans_file_that_cannot_be_used_is_told_with_all_other_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plans.toml"
    path.write_text("[plans.pro]\nquota_tokens = -1\n[others]\n")
    monkeypatch.setenv("PLANS_FILE", str(path))
    monkeypatch.delenv("STRIPE_API_KEY", raising=False)
    with pytest.raises(SystemExit):
        load(Settings)
    told = capsys.readouterr().err
    assert "PLANS_FILE: others: is not known here" in told
    assert "PLANS_FILE: plans.pro.quota_tokens" in told
    assert "STRIPE_API_KEY: Field required" in told
