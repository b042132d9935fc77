"""An account that may work: made through the gateway's admin routes, subscribed through Stripe's own API."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deploy.local.environment import STRIPE
from deploy.local.plain_http import ask
from deploy.local.stack import Stack

PRICE = "price_parley_pro"
ALLOW_SECONDS = 90
POLL_SECONDS = 0.1


class SeedError(Exception):
    """The account did not become one that may work."""


@dataclass(frozen=True)
class Account:
    id: str
    key: str
    customer_id: str = ""
    subscription_id: str = ""


def make_account(stack: Stack, name: str) -> Account:
    """An account with a key and without a subscription."""
    base, admin_key = stack.url("gateway"), stack.admin_key()
    account_id = ask("POST", f"{base}/v1/admin/accounts", key=admin_key, body={"name": name})["id"]
    key = ask("POST", f"{base}/v1/admin/accounts/{account_id}/keys", key=admin_key, body={"name": "first"})["key"]
    return Account(account_id, key)


def subscribe(stack: Stack, account: Account, price: str = PRICE) -> Account:
    """A customer and an active subscription in the stand-in, which tells billing by signed webhooks."""
    stripe, key = stack.url(STRIPE), stack.secrets.stripe_api_key
    metadata = {"metadata[parley_account_id]": account.id}
    customer = ask("POST", f"{stripe}/v1/customers", key=key, form=metadata)
    subscription = ask(
        "POST", f"{stripe}/v1/subscriptions", key=key, form={"customer": customer["id"], "items[0][price]": price}
    )
    return Account(account.id, account.key, customer["id"], subscription["id"])


def eligibility(stack: Stack, account: Account) -> dict[str, Any]:
    answer: dict[str, Any] = ask("GET", f"{stack.url('gateway')}/v1/eligibility", key=account.key)
    return answer


def await_allow(stack: Stack, account: Account) -> None:
    wait_for(lambda: eligibility(stack, account), lambda answer: answer["decision"] == "ALLOW", "an ALLOW")


def subscribed_account(stack: Stack, name: str, price: str = PRICE) -> Account:
    """What nearly every use of a stack begins with."""
    account = subscribe(stack, make_account(stack, name), price)
    await_allow(stack, account)
    return account


def wait_for(read: Callable[[], dict[str, Any]], good: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
    deadline = time.monotonic() + ALLOW_SECONDS
    while not good(answer := read()):
        if time.monotonic() > deadline:
            raise SeedError(f"no {what} within {ALLOW_SECONDS} s; the last answer was {answer}")
        time.sleep(POLL_SECONDS)
    return answer
