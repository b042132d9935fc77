"""Accounts and keys: made by administrators, shown once, revoked for good."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from services.gateway.administration import COMMANDS
from tests.component.gateway.driver import Gateway
from tests.support.bus import eventually


async def test_an_administrator_makes_an_account_and_a_key_that_works(gateway: Gateway) -> None:
    admin = (await gateway.new_customer(scope="admin")).key
    made = await gateway.call("POST", "/v1/admin/accounts", {"name": "Ada"}, key=admin)
    assert (made.status, made.headers["Location"]) == (201, f"/v1/admin/accounts/{made.body['id']}")
    keys = f"{made.headers['Location']}/keys"
    created = await gateway.call("POST", keys, {"name": "laptop"}, key=admin)
    assert created.status == 201
    assert (await gateway.call("GET", "/v1/sessions", key=created.body["key"])).status == 200
    listed = (await gateway.call("GET", keys, key=admin)).body["data"]
    assert [(key["id"], key["name"]) for key in listed] == [(created.body["id"], "laptop")]
    assert created.body["key"].endswith(listed[0]["last_four"])
    assert "key" not in listed[0]
    assert created.body["key"] not in str(await gateway.database.fetch("SELECT t::text FROM api_keys t"))


async def test_a_revoked_key_stops_working_and_stays_revoked(gateway: Gateway) -> None:
    admin = (await gateway.new_customer(scope="admin")).key
    account = (await gateway.call("POST", "/v1/admin/accounts", {"name": "Ada"}, key=admin)).body
    keys = f"/v1/admin/accounts/{account['id']}/keys"
    created = (await gateway.call("POST", keys, {}, key=admin)).body
    assert (await gateway.call("GET", "/v1/sessions", key=created["key"])).status == 200
    assert (await gateway.call("DELETE", f"{keys}/{created['id']}", key=admin)).status == 204

    async def is_refused() -> bool:
        return (await gateway.call("GET", "/v1/sessions", key=created["key"])).status == 401

    await eventually(is_refused)
    revoked_at = (await gateway.call("GET", keys, key=admin)).body["data"][0]["revoked_at"]
    assert (await gateway.call("DELETE", f"{keys}/{created['id']}", key=admin)).status == 204
    assert (await gateway.call("GET", keys, key=admin)).body["data"][0]["revoked_at"] == revoked_at


async def test_a_key_is_revoked_only_under_its_own_account(gateway: Gateway) -> None:
    admin = (await gateway.new_customer(scope="admin")).key
    accounts = [(await gateway.call("POST", "/v1/admin/accounts", {"name": name}, key=admin)).body for name in "ab"]
    created = (await gateway.call("POST", f"/v1/admin/accounts/{accounts[0]['id']}/keys", {}, key=admin)).body
    reply = await gateway.call("DELETE", f"/v1/admin/accounts/{accounts[1]['id']}/keys/{created['id']}", key=admin)
    assert (reply.status, reply.code) == (404, "key_not_found")


async def run(gateway: Gateway, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[Any]]:
    """An operator's command, and the JSON lines that it printed."""
    parser = argparse.ArgumentParser()
    COMMANDS[arguments[0]].add_arguments(parser)
    capsys.readouterr()
    status = await COMMANDS[arguments[0]].run(gateway.settings, parser.parse_args(arguments[1:]))
    printed = capsys.readouterr().out.splitlines()
    return status, [json.loads(line) for line in printed if line.startswith("{")]


async def test_the_commands_do_the_same_without_a_server(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    status, [account] = await run(gateway, capsys, "accounts", "create", "--name", "Ada")
    assert status == 0
    _, [created] = await run(gateway, capsys, "keys", "create", "--account", account["id"])
    _, [admin] = await run(gateway, capsys, "keys", "create", "--admin")
    assert (await gateway.call("GET", "/v1/sessions", key=created["key"])).status == 200
    assert (await gateway.call("GET", "/v1/admin/accounts", key=admin["key"])).status == 200
    revoked = {"id": created["id"], "revoked": True}
    assert await run(gateway, capsys, "keys", "revoke", created["id"]) == (0, [revoked])
    _, [listed] = await run(gateway, capsys, "keys", "list", "--account", account["id"])
    assert (listed["id"], listed["revoked_at"] is None) == (created["id"], False)
    assert (await run(gateway, capsys, "keys", "revoke", "key_unknown"))[0] == 1
    assert (await run(gateway, capsys, "keys", "create", "--account", "acct_unknown"))[0] == 1
