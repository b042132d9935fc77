"""The gateway's SQL: one function per query, each with its guard in its name."""

from services.gateway.store.accounts import AccountStore
from services.gateway.store.requests import RequestStore
from services.gateway.store.sessions import SessionStore
from services.gateway.store.sweeps import SweepStore
from services.gateway.store.turns import TurnStore

__all__ = ["AccountStore", "RequestStore", "SessionStore", "SweepStore", "TurnStore"]
