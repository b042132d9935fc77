"""Who owns what is asked for: the path or the header, and where both are there they must agree."""

from __future__ import annotations

import re
from typing import Final

from aiohttp import web

from shared.errors import Problem, not_found

_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def account_in_path(request: web.Request) -> str:
    """The account the path names; 404 where the caller speaks for another one."""
    account_id = request.match_info["account_id"]
    header = request.headers.get("Parley-Account")
    if not _ACCOUNT.fullmatch(account_id) or (header is not None and header != account_id):
        raise not_found("account")
    return account_id


def account_in_header(request: web.Request) -> str:
    """The account the caller speaks for."""
    header = request.headers.get("Parley-Account", "")
    if not _ACCOUNT.fullmatch(header):
        raise Problem(400, "account_missing", "Name the account in the header Parley-Account.")
    return header
