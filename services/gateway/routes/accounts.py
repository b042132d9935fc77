"""/v1/admin/accounts: accounts and their keys, for administrators."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from services.gateway.api_keys import new_key
from services.gateway.pagination import decode_cursor, encode_cursor
from services.gateway.routes.call import Call
from services.gateway.schemas import (
    AccountView,
    CreateAccount,
    CreatedKey,
    CreateKey,
    KeyView,
    ListQuery,
    Nothing,
    Page,
)
from shared.errors import not_found
from shared.http import json_response
from shared.ids import new_id


async def create_account(call: Call[CreateAccount, Nothing]) -> web.Response:
    account = await call.services.accounts.insert_account(new_id("acct"), call.body.name)
    view = AccountView(**asdict(account))
    return json_response(view, status=201, headers={"Location": f"/v1/admin/accounts/{account.id}"})


async def list_accounts(call: Call[Nothing, ListQuery]) -> web.Response:
    before_id = decode_cursor("accounts", call.query.cursor)
    found = await call.services.accounts.select_accounts_before(before_id, call.query.limit + 1)
    page = found[: call.query.limit]
    more = encode_cursor("accounts", page[-1].id) if len(found) > len(page) else None
    return json_response(Page[AccountView](data=tuple(AccountView(**asdict(entry)) for entry in page), next=more))


async def get_account(call: Call[Nothing, Nothing]) -> web.Response:
    account = await call.services.accounts.select_account(call.path_id("account"))
    if account is None:
        raise not_found("account")
    return json_response(AccountView(**asdict(account)))


async def create_key(call: Call[CreateKey, Nothing]) -> web.Response:
    """The one answer that holds the key's text."""
    account_id = await _existing_account_id(call)
    made = new_key("account", call.services.api_key_pepper)
    key = await call.services.accounts.insert_key(
        new_id("key"), account_id, name=call.body.name, secret_hash=made.secret_hash, last_four=made.last_four
    )
    return json_response(CreatedKey(**asdict(key), key=made.text), status=201)


async def list_keys(call: Call[Nothing, ListQuery]) -> web.Response:
    account_id = await _existing_account_id(call)
    before_id = decode_cursor("keys", call.query.cursor)
    found = await call.services.accounts.select_keys_before(account_id, before_id, call.query.limit + 1)
    page = found[: call.query.limit]
    more = encode_cursor("keys", page[-1].id) if len(found) > len(page) else None
    return json_response(Page[KeyView](data=tuple(KeyView(**asdict(entry)) for entry in page), next=more))


async def revoke_key(call: Call[Nothing, Nothing]) -> web.Response:
    """The key stops working within seconds, on every replica. Revoking it again changes nothing."""
    if not await call.services.accounts.update_key_revoked(call.path_id("key"), call.path_id("account")):
        raise not_found("key")
    return web.Response(status=204)


async def _existing_account_id(call: Call[CreateKey, Nothing] | Call[Nothing, ListQuery]) -> str:
    account_id = call.path_id("account")
    if await call.services.accounts.select_account(account_id) is None:
        raise not_found("account")
    return account_id
