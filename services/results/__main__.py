"""`python -m services.results`: serve, migrate, parked."""

from pathlib import Path

from services.results.app import build
from services.results.config import Settings
from shared.runtime import main

if __name__ == "__main__":
    main("results", Settings, build, migrations=Path(__file__).parent / "migrations")
