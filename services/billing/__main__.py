"""`python -m services.billing`: serve, migrate, parked, reconcile, block, allow, lift."""

from pathlib import Path

from services.billing.app import build
from services.billing.commands import COMMANDS
from services.billing.config import Settings
from shared.runtime import main

if __name__ == "__main__":
    main("billing", Settings, build, migrations=Path(__file__).parent / "migrations", commands=COMMANDS)
