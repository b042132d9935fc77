"""Accounts and keys, for administrators."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from services.gateway.schemas.base import Incoming, Outgoing

NAME_LENGTH_MAX: Final = 200


class CreateAccount(Incoming):
    """Whoever pays: the owner of sessions, requests and keys."""

    name: str = Field(min_length=1, max_length=NAME_LENGTH_MAX)


class CreateKey(Incoming):
    """A key of an account. `name` reminds its owner what it is for."""

    name: str | None = Field(default=None, min_length=1, max_length=NAME_LENGTH_MAX)


class AccountView(Outgoing):
    """An account as an administrator sees it."""

    id: str
    name: str
    created_at: datetime


class KeyView(Outgoing):
    """A key without its text, of which only the last four characters are known."""

    id: str
    account_id: str | None
    scope: Literal["account", "admin"]
    name: str | None
    last_four: str
    created_at: datetime
    revoked_at: datetime | None


class CreatedKey(KeyView):
    """A new key. `key` is shown here and never again."""

    key: str
