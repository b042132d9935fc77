"""Who calls: the key in the Authorization header, looked up at most once a second."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.gateway.api_keys import Scope, hash_key, is_well_formed
from services.gateway.records import Caller
from services.gateway.store import AccountStore
from shared.clock import Clock
from shared.errors import Problem

CACHE_SECONDS: Final = 1.0
"""How long a revoked key may go on working."""
CACHE_ENTRIES_MAX: Final = 10_000
_SCHEME: Final = "bearer "


@dataclass(slots=True)
class _Entry:
    lookup: asyncio.Task[Caller | None]
    expires_at: float


class Authenticator:
    """Every refusal for want of a good key is the same answer: it does not tell a revoked key from a made-up one."""

    def __init__(self, accounts: AccountStore, *, pepper: str, clock: Clock) -> None:
        self._accounts = accounts
        self._pepper = pepper
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    async def authenticate(self, authorization: Sequence[str], scope: Scope) -> Caller:
        """The caller, whose key must be of `scope`; raises 401 or 403."""
        key = _key_in(authorization)
        caller = await self._look_up(hash_key(key, self._pepper)) if key else None
        if caller is None:
            raise Problem(
                401,
                "invalid_api_key",
                "Send `Authorization: Bearer KEY` with a key of your account.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if caller.scope != scope:
            raise Problem(403, "insufficient_scope", f"This route is for keys of scope {scope}.")
        return caller

    def forget(self, account_ids: set[str]) -> None:
        """Look the callers of these accounts up again: what was read about them has changed."""
        for secret_hash, entry in list(self._entries.items()):
            if not entry.lookup.done() or _account_of(entry.lookup) in account_ids:
                del self._entries[secret_hash]

    async def _look_up(self, secret_hash: bytes) -> Caller | None:
        entry = self._entries.get(secret_hash)
        if entry is None or entry.expires_at <= self._clock.monotonic():
            # Whoever asks meanwhile waits for the same look-up, so that a busy key costs one query a second.
            lookup = asyncio.create_task(self._accounts.select_caller_unless_revoked(secret_hash))
            entry = _Entry(lookup, self._clock.monotonic() + CACHE_SECONDS)
            self._entries.pop(secret_hash, None)
            self._entries[secret_hash] = entry
            if len(self._entries) > CACHE_ENTRIES_MAX:
                self._entries.popitem(last=False)
        try:
            return await asyncio.shield(entry.lookup)
        except Exception:
            if self._entries.get(secret_hash) is entry:
                del self._entries[secret_hash]
            raise


def _account_of(lookup: asyncio.Task[Caller | None]) -> str | None:
    if lookup.cancelled() or lookup.exception() is not None:
        return None
    caller = lookup.result()
    return caller.account_id if caller else None


def _key_in(authorization: Sequence[str]) -> str | None:
    """The well-formed key of the one Authorization header there is."""
    if len(authorization) != 1 or not authorization[0].lower().startswith(_SCHEME):
        return None
    key = authorization[0][len(_SCHEME) :].strip()
    return key if is_well_formed(key) else None
