"""The public model names, so that an unknown one is refused at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

from shared.errors import ParleyError

DEFAULT_MODEL = "default"


class ModelsFileUnreadable(ParleyError):
    """MODELS_FILE is missing, is not TOML, or names no models."""


def read_model_names(models_file: Path | None) -> frozenset[str]:
    """The keys of `[models]`; without a file there is one model, `default`."""
    if models_file is None:
        return frozenset({DEFAULT_MODEL})
    try:
        models = tomllib.loads(models_file.read_text()).get("models")
    except (OSError, ValueError) as error:
        raise ModelsFileUnreadable(f"MODELS_FILE {models_file} cannot be read: {error}") from error
    if not isinstance(models, dict) or DEFAULT_MODEL not in models:
        raise ModelsFileUnreadable(f"MODELS_FILE {models_file} has no [models.{DEFAULT_MODEL}]")
    return frozenset(models)
