"""The operator's commands: accounts and keys, without a server."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Final

from services.gateway.api_keys import new_key
from services.gateway.config import Settings
from services.gateway.schemas.accounts import NAME_LENGTH_MAX
from services.gateway.store import AccountStore
from shared.ids import new_id
from shared.postgres import Database
from shared.runtime import Command

_PAGE: Final = 100


def _add_accounts_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("create", help="create an account").add_argument("--name", type=_name, required=True)
    actions.add_parser("list", help="list accounts, newest first")


def _add_keys_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    creating = actions.add_parser("create", help="create a key and show it, once")
    owner = creating.add_mutually_exclusive_group(required=True)
    owner.add_argument("--account", help="the account it is for")
    owner.add_argument("--admin", action="store_true", help="an administrator's key, for /v1/admin only")
    creating.add_argument("--name", type=_name, help="what it is for")
    actions.add_parser("revoke", help="make a key useless").add_argument("id")
    actions.add_parser("list", help="list an account's keys").add_argument("--account", required=True)


def _name(text: str) -> str:
    if not 1 <= len(text) <= NAME_LENGTH_MAX:
        raise argparse.ArgumentTypeError(f"a name has 1 to {NAME_LENGTH_MAX} characters")
    return text


async def _run_accounts(settings: Settings, arguments: argparse.Namespace) -> int:
    database = await _connect(settings)
    try:
        store = AccountStore(database)
        if arguments.action == "create":
            _print(asdict(await store.insert_account(new_id("acct"), arguments.name)))
            return 0
        before_id = None
        while page := await store.select_accounts_before(before_id, _PAGE):
            for account in page:
                _print(asdict(account))
            before_id = page[-1].id
        return 0
    finally:
        await database.stop()


async def _run_keys(settings: Settings, arguments: argparse.Namespace) -> int:
    database = await _connect(settings)
    try:
        store = AccountStore(database)
        match arguments.action:
            case "create":
                return await _create_key(store, settings, arguments)
            case "revoke":
                return await _revoke_key(store, arguments.id)
            case _:
                return await _list_keys(store, arguments.account)
    finally:
        await database.stop()


async def _create_key(store: AccountStore, settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.account and await store.select_account(arguments.account) is None:
        return _refused(f"There is no account {arguments.account}.")
    made = new_key("admin" if arguments.admin else "account", settings.api_key_pepper.get_secret_value())
    key = await store.insert_key(
        new_id("key"),
        arguments.account,
        name=arguments.name,
        secret_hash=made.secret_hash,
        last_four=made.last_four,
    )
    _print({**asdict(key), "key": made.text})
    return 0


async def _revoke_key(store: AccountStore, key_id: str) -> int:
    if not await store.update_key_revoked(key_id):
        return _refused(f"There is no key {key_id}.")
    _print({"id": key_id, "revoked": True})
    return 0


async def _list_keys(store: AccountStore, account_id: str) -> int:
    before_id = None
    while page := await store.select_keys_before(account_id, before_id, _PAGE):
        for key in page:
            _print(asdict(key))
        before_id = page[-1].id
    return 0


async def _connect(settings: Settings) -> Database:
    database = Database(settings.database_url.get_secret_value(), service="gateway-administration", pool_max=2)
    await database.start()
    return database


def _print(fields: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(fields, default=str) + "\n")


def _refused(complaint: str) -> int:
    sys.stderr.write(complaint + "\n")
    return 1


COMMANDS: Final = {
    "accounts": Command("create or list accounts", _add_accounts_arguments, _run_accounts),
    "keys": Command("create, revoke or list API keys", _add_keys_arguments, _run_keys),
}
