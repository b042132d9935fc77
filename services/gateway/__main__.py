"""`python -m services.gateway`: serve, migrate, parked, accounts, keys."""

from pathlib import Path

from services.gateway.administration import COMMANDS
from services.gateway.app import build
from services.gateway.config import Settings
from shared.runtime import main

if __name__ == "__main__":
    main("gateway", Settings, build, migrations=Path(__file__).parent / "migrations", commands=COMMANDS)
