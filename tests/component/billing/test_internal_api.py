"""The internal HTTP API of the running service, the results it hears, and its operators' commands."""

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.billing.commands import COMMANDS
from services.billing.config import Settings
from shared.ids import new_id
from tests.component.billing.driver import Billing
from tests.component.billing.parts import question, result
from tests.support.bus import eventually
from tests.support.counted import handling

URLS = {"success_url": "https://app.example/ok", "cancel_url": "https://app.example/no"}
TOMORROW = datetime.now(UTC) + timedelta(days=1)


async def test_a_request_is_held_charged_and_explained(billing: Billing) -> None:
    account_id, _ = await billing.subscribed()
    asked = question(tokens=1000, account_id=account_id, expires_at=TOMORROW)
    [reply] = await billing.hold(asked)
    assert (reply.eligibility.decision, reply.held_tokens) == ("ALLOW", 1000)
    request = f"/internal/requests/{asked.request_id}"
    assert (await billing.call("GET", f"{request}/charge", account_id=account_id))[0] == 404
    await billing.bus.send(result(asked.request_id, 321, account_id=account_id))

    async def is_charged() -> bool:
        return (await billing.call("GET", f"{request}/charge", account_id=account_id))[0] == 200

    await eventually(is_charged)
    _, charge = await billing.call("GET", f"{request}/charge", account_id=account_id)
    assert (charge["state"], charge["tokens"], charge["reason"]) == ("settled", 321, "completed")
    _, usage = await billing.call("GET", f"/internal/accounts/{account_id}/usage", account_id=account_id)
    assert {name: usage[name] for name in ("plan", "granted_tokens", "settled_tokens", "held_tokens")} == {
        "plan": "pro",
        "granted_tokens": 5_000_000,
        "settled_tokens": 321,
        "held_tokens": 0,
    }
    assert usage["requests_charged"] == 1
    _, records = await billing.call("GET", f"{request}/records", account_id=account_id)
    assert [entry["type"] for entry in records["entries"]] == [
        "decision.made",
        "hold.created",
        "hold.settled",
        "charge.recorded",
    ]
    assert records["entries"][0]["data"]["reasons"] == ["active"]
    assert records["entries"][3]["data"] == {"kind": "charge", "tokens": 321, "reason": "completed"}


async def test_a_denied_request_is_explained_without_a_hold(billing: Billing) -> None:
    account_id = new_id("acct")
    asked = question(account_id=account_id, expires_at=TOMORROW)
    await billing.hold(asked)
    async with handling("billing.results", 1):
        await billing.bus.send(result(asked.request_id, None, status="refused", account_id=account_id))
    _, records = await billing.call("GET", f"/internal/requests/{asked.request_id}/records", account_id=account_id)
    assert [(entry["type"], entry["data"]["decision"]) for entry in records["entries"]] == [("decision.made", "DENY")]


async def test_a_request_that_ended_before_anybody_asked_for_a_hold_is_explained_by_its_end(billing: Billing) -> None:
    request_id, account_id = new_id("req"), new_id("acct")
    async with handling("billing.results", 1):
        await billing.bus.send(result(request_id, None, status="cancelled", account_id=account_id))
    released = ("hold.released", {"tokens": 0, "reason": "cancelled_before_any_call", "result": "cancelled"})

    async def entries() -> list[tuple[str, Any]]:
        _, records = await billing.call("GET", f"/internal/requests/{request_id}/records", account_id=account_id)
        return [(entry["type"], entry["data"]) for entry in records["entries"]]

    assert await entries() == [released]
    await billing.hold(question(request_id=request_id, account_id=account_id, expires_at=TOMORROW))
    assert [entry for entry in await entries() if entry[0] != "decision.made"] == [released]


async def test_what_belongs_to_another_account_is_not_found(billing: Billing) -> None:
    account_id, stranger = (await billing.subscribed())[0], new_id("acct")
    asked = question(account_id=account_id, expires_at=TOMORROW)
    await billing.hold(asked)
    await billing.bus.send(result(asked.request_id, 5, account_id=account_id))
    request = f"/internal/requests/{asked.request_id}"

    async def is_charged() -> bool:
        return (await billing.call("GET", f"{request}/charge", account_id=account_id))[0] == 200

    await eventually(is_charged)
    for path in (f"{request}/charge", f"{request}/records", f"/internal/accounts/{account_id}/eligibility"):
        assert (await billing.call("GET", path, account_id=stranger))[0] == 404, path
    assert (await billing.call("GET", f"{request}/records"))[1]["code"] == "account_missing"
    unknown = await billing.call("GET", f"/internal/requests/{new_id('req')}/records", account_id=stranger)
    assert unknown == (200, {"entries": []})


async def test_only_our_own_services_may_ask(billing: Billing) -> None:
    status, problem = await billing.call("GET", "/internal/accounts/acct_1/eligibility", token="another-token-of-16")
    assert (status, problem["code"]) == (401, "unauthorized")


async def test_a_question_that_is_none_names_what_is_wrong(billing: Billing) -> None:
    status, problem = await billing.call("POST", "/internal/holds", body={"holds": []})
    assert (status, problem["code"]) == (422, "invalid_request")
    over: list[dict[str, Any]] = [question(expires_at=TOMORROW).model_dump(mode="json") for _ in range(257)]
    assert (await billing.call("POST", "/internal/holds", body={"holds": over}))[0] == 422


async def test_a_result_of_another_account_is_parked(billing: Billing) -> None:
    account_id, _ = await billing.subscribed()
    asked = question(account_id=account_id, expires_at=TOMORROW)
    await billing.hold(asked)
    await billing.bus.send(result(asked.request_id, 5, account_id=new_id("acct")))

    async def is_parked() -> bool:
        parked: int = await billing.database.fetchval(
            "SELECT count(*) FROM parked_messages WHERE reason LIKE 'account_mismatch%'"
        )
        return parked == 1

    await eventually(is_parked)


async def test_a_hold_that_nobody_ends_is_swept(billing: Billing) -> None:
    account_id, _ = await billing.subscribed()
    asked = question(account_id=account_id, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    await billing.hold(asked)

    async def is_expired() -> bool:
        state: str = await billing.database.fetchval("SELECT state FROM holds WHERE request_id = $1", asked.request_id)
        return state == "expired"

    await eventually(is_expired)


async def test_time_alone_changes_a_decision_and_asks_stripe_again(billing: Billing) -> None:
    account_id, made = await billing.subscribed()
    await billing.control.change_subscription(made["id"], status="unpaid", emit=False)
    # The clock that runs out is that of the decision in force: its end is moved to the past.
    await billing.database.execute(
        "UPDATE eligibilities SET valid_until = now() - interval '1 second' WHERE account_id = $1", account_id
    )
    await billing.decides(account_id, "DENY", "unpaid")


async def test_a_checkout_is_opened_once_and_leads_to_an_allow(billing: Billing) -> None:
    account_id = new_id("acct")
    body = {"plan": "pro", **URLS}
    path = f"/internal/accounts/{account_id}/checkout"
    answers = await asyncio.gather(*(billing.call("POST", path, body=body) for _ in range(5)))
    assert {status for status, _ in answers} == {200}
    assert len({answer["url"] for _, answer in answers}) == 1
    customers = await billing.stripe("GET", "/v1/customers?limit=100")
    assert [found["metadata"] for found in customers["data"]] == [{"parley_account_id": account_id}]
    session = await billing.database.fetchval("SELECT session_id FROM checkouts WHERE account_id = $1", account_id)
    await billing.control.ask("POST", f"/checkout/{session}/complete", {})
    await billing.decides(account_id, "ALLOW", "active")
    again = await billing.call("POST", path, body=body)
    assert (again[0], again[1]["code"]) == (409, "already_subscribed")
    portal = f"/internal/accounts/{account_id}/portal"
    status, answer = await billing.call("POST", portal, body={"return_url": "https://app.example/back"})
    assert (status, answer["url"].startswith("http")) == (200, True)


async def test_whoever_comes_back_before_the_webhook_is_allowed_by_asking(billing: Billing) -> None:
    account_id = new_id("acct")
    body = {"plan": "pro", **URLS}
    await billing.call("POST", f"/internal/accounts/{account_id}/checkout", body=body)
    await billing.settled()
    await billing.control.ask("PUT", "/delivery", {"url": None})
    session = await billing.database.fetchval("SELECT session_id FROM checkouts WHERE account_id = $1", account_id)
    await billing.control.ask("POST", f"/checkout/{session}/complete", {})
    await billing.decides(account_id, "ALLOW", "active")


CUSTOMER = "SELECT customer_id FROM customers WHERE account_id = $1 AND NOT deleted"


async def deleted_unheard(billing: Billing, account_id: str) -> str:
    """The account's customer, whom Stripe does not know any more without having said so."""
    await billing.control.ask("PUT", "/delivery", {"url": None})
    customer_id: str = await billing.database.fetchval(
        "SELECT customer_id FROM customers WHERE account_id = $1", account_id
    )
    await billing.stripe("DELETE", f"/v1/customers/{customer_id}")
    return customer_id


async def test_a_customer_that_is_gone_from_stripe_is_replaced_by_the_next_checkout(billing: Billing) -> None:
    account_id, _ = await billing.subscribed()
    gone = await deleted_unheard(billing, account_id)
    path = f"/internal/accounts/{account_id}"
    nobody = await billing.call("POST", f"{path}/portal", body={"return_url": "https://app.example"})
    assert (nobody[0], nobody[1]["code"]) == (409, "no_customer")
    await billing.settled()
    body = {"plan": "pro", **URLS}
    has_none = "SELECT (facts->>'customer_deleted')::bool FROM eligibilities WHERE account_id = $1"
    assert await billing.database.fetchval(has_none, account_id)
    assert (await billing.call("POST", f"{path}/checkout", body=body))[0] == 200

    async def is_decided_anew() -> bool:
        return not await billing.database.fetchval(has_none, account_id)

    await eventually(is_decided_anew)
    session = await billing.database.fetchval("SELECT session_id FROM checkouts WHERE account_id = $1", account_id)
    await billing.control.ask("POST", f"/checkout/{session}/complete", {})
    await billing.decides(account_id, "ALLOW", "active")
    customers = await billing.database.fetch(
        "SELECT customer_id = $2 AS is_gone, deleted FROM customers WHERE account_id = $1", account_id, gone
    )
    assert sorted(map(tuple, customers)) == [(False, False), (True, True)]


async def test_a_customer_that_goes_while_his_checkout_is_made_is_replaced_at_once(billing: Billing) -> None:
    account_id = new_id("acct")
    body = {"plan": "basic", **URLS}
    path = f"/internal/accounts/{account_id}/checkout"
    assert (await billing.call("POST", path, body=body))[0] == 200
    gone = await deleted_unheard(billing, account_id)
    assert (await billing.call("POST", path, body=body | {"plan": "pro"}))[0] == 200
    assert await billing.database.fetchval(CUSTOMER, account_id) not in (None, gone)


async def test_the_page_of_a_customer_that_is_gone_is_not_given_again(billing: Billing) -> None:
    account_id = new_id("acct")
    path, body = f"/internal/accounts/{account_id}/checkout", {"plan": "pro", **URLS}
    pages = set()
    for deleted in range(4):
        status, made = await billing.call("POST", path, body=body)
        assert (status, made["url"] in pages) == (200, False), made
        pages.add(made["url"])
        await billing.stripe("DELETE", f"/v1/customers/{await billing.database.fetchval(CUSTOMER, account_id)}")

        async def is_heard_of(count: int = deleted + 1) -> bool:
            heard = "SELECT count(*) = $2 FROM customers WHERE account_id = $1 AND deleted"
            return bool(await billing.database.fetchval(heard, account_id, count))

        await eventually(is_heard_of)


async def test_the_page_of_another_customer_stays(billing: Billing) -> None:
    """Such as one that somebody has made for the account in Stripe, and deletes."""
    account_id = new_id("acct")
    path, body = f"/internal/accounts/{account_id}/checkout", {"plan": "pro", **URLS}
    _, made = await billing.call("POST", path, body=body)
    ours = await billing.database.fetchval(CUSTOMER, account_id)
    other = await billing.stripe("POST", "/v1/customers", **{"metadata[parley_account_id]": account_id})
    await eventually(lambda: billing.database.fetchval(f"SELECT count(*) = 2 FROM ({CUSTOMER}) AS c", account_id))
    await billing.stripe("DELETE", f"/v1/customers/{other['id']}")
    await eventually(lambda: billing.database.fetchval(f"SELECT count(*) = 1 FROM ({CUSTOMER}) AS c", account_id))
    assert await billing.database.fetchval(CUSTOMER, account_id) == ours
    assert (await billing.call("POST", path, body=body))[1]["url"] == made["url"]


async def test_what_cannot_be_bought_is_said(billing: Billing) -> None:
    account_id = new_id("acct")
    path = f"/internal/accounts/{account_id}"
    unknown = await billing.call("POST", f"{path}/checkout", body={"plan": "gold", **URLS})
    assert (unknown[0], unknown[1]["code"]) == (422, "plan_not_found")
    assert unknown[1]["detail"] == "No such plan is for sale; there are: basic, pro."
    unnamed = await billing.call("POST", f"{path}/checkout", body=URLS)
    assert unnamed[1]["detail"] == "Name a plan; there are: basic, pro."
    mixed = await billing.call("POST", f"{path}/checkout", body={"plan": "pro", "price": "price_parley_basic", **URLS})
    assert (mixed[0], mixed[1]["code"]) == (422, "price_not_in_plan")
    nobody = await billing.call("POST", f"{path}/portal", body={"return_url": "https://app.example"})
    assert (nobody[0], nobody[1]["code"]) == (409, "no_customer")


async def command(settings: Settings, *arguments: str) -> tuple[int, str]:
    """Run `python -m services.billing ...` as an operator does."""
    environment = {
        "PATH": os.environ["PATH"],
        "AMQP_URL": settings.amqp_url.get_secret_value(),
        "SERVICE_TOKEN": settings.service_token.get_secret_value(),
        "BILLING_DATABASE_URL": settings.database_url.get_secret_value(),
        "STRIPE_API_KEY": "sk_test_x",
        "STRIPE_API_BASE": settings.stripe_api_base,
        "STRIPE_WEBHOOK_SECRETS": "whsec_first",
        "PLANS_FILE": str(settings.plans_file),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.billing",
        *arguments,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def run(settings: Settings, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The same without the start of a process."""
    parser = argparse.ArgumentParser()
    COMMANDS[arguments[0]].add_arguments(parser)
    capsys.readouterr()
    try:
        status = await COMMANDS[arguments[0]].run(settings, parser.parse_args(arguments[1:]))
    except SystemExit as refused:
        status = int(refused.code or 0)
    return status, capsys.readouterr().out


async def test_operators_block_allow_and_lift(
    billing: Billing, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = await billing.bus.listen("eligibility.changed")
    account_id, _ = await billing.subscribed()
    code, said = await run(settings, capsys, "block", account_id, "--reason", "abuse")
    assert (code, "now DENY (manual_block)" in said) == (0, True), said
    assert (await billing.eligibility(account_id))["reasons"] == ["manual_block"]
    code, said = await run(settings, capsys, "lift", account_id, "--actor", "somebody else")
    assert (code, "now ALLOW (active)" in said) == (0, True), said
    assert await billing.database.fetchval("SELECT lifted_by FROM overlays") == "somebody else"
    guest = new_id("acct")
    until = TOMORROW.isoformat()
    allow = ("allow", guest, "--reason", "pilot")
    code, said = await run(settings, capsys, *allow, "--until", until, "--plan", "basic")
    assert (code, "now ALLOW (manual_allow" in said) == (0, True), said
    assert (await billing.eligibility(guest))["plan"] == "basic"
    assert (await run(settings, capsys, *allow))[0] == 2, "an end is required"
    assert (await run(settings, capsys, *allow, "--until", until, "--plan", "gold"))[0] == 2

    # A command leaves the word about it to the service, which waits some seconds for it and then says it itself.
    await billing.database.execute("UPDATE eligibilities SET decided_at = decided_at - interval '1 minute'")
    await billing.changes.sweep()

    async def was_told() -> bool:
        told = [json.loads(message.body) for message in listener.heard]
        return any(body["account_id"] == guest and body["eligibility"]["decision"] == "ALLOW" for body in told)

    await eventually(was_told)


async def test_an_operators_word_needs_a_name_where_the_user_has_none(
    billing: Billing, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the user is a number."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 10001)
    allow = ("allow", new_id("acct"), "--reason", "pilot", "--until", TOMORROW.isoformat())
    assert (await run(settings, capsys, *allow))[0] == 2
    assert (await run(settings, capsys, *allow, "--actor", "kim"))[0] == 0
    assert await billing.database.fetchval("SELECT actor FROM overlays WHERE account_id = $1", allow[1]) == "kim"


async def test_a_command_about_an_account_that_nobody_has_heard_of_says_so(
    billing: Billing, settings: Settings
) -> None:
    unknown = new_id("acct")
    code, said = await command(settings, "block", unknown, "--reason", "abuse")
    assert (code, f"never heard of {unknown}" in said) == (1, True), said
    assert await billing.database.fetchval("SELECT count(*) FROM overlays WHERE account_id = $1", unknown) == 0
    code, said = await command(settings, "lift", unknown)
    assert (code, "to lift" in said) == (1, True), said
    code, said = await command(settings, "allow", unknown, "--until", TOMORROW.isoformat(), "--reason", "pilot")
    assert (code, f"never heard of {unknown} before" in said) == (0, True), said
    code, said = await command(settings, "block", "acct_typo", "--reason", "abuse")
    assert (code, "is no account's id" in said) == (2, True), said


async def test_reconcile_revives_what_was_given_up(billing: Billing, settings: Settings) -> None:
    account_id, made = await billing.subscribed()
    await billing.control.change_subscription(made["id"], status="unpaid", emit=False)
    await billing.database.execute(
        "UPDATE stripe_events SET state = 'dead', ended_at = now() WHERE subscription_id = $1", made["id"]
    )
    code, said = await command(settings, "reconcile")
    assert code == 0, said
    assert "dead 0" in said
    await billing.decides(account_id, "DENY", "unpaid")
