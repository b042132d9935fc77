"""`python -m services.orchestrator`: serve, migrate, parked."""

from pathlib import Path

from services.orchestrator.app import build
from services.orchestrator.config import Settings
from shared.runtime import main

if __name__ == "__main__":
    main("orchestrator", Settings, build, migrations=Path(__file__).parent / "migrations")
