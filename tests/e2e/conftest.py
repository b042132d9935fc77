"""What every end-to-end test begins with: the session's stack, an account that may work, the stand-ins' controls."""

from collections.abc import AsyncIterator, Callable
from uuid import uuid4

import aiohttp
import pytest

from tests.support.parley import Parley, http_session
from tests.support.stack import Account, Stack, make_account, subscribed_account
from tests.support.standins import LlmControl, StripeControl


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with http_session() as session:
        yield session


@pytest.fixture
def llm(stack: Stack, http: aiohttp.ClientSession) -> LlmControl:
    return LlmControl(http, stack.ops_url("llm"))


@pytest.fixture
def stripe(stack: Stack, http: aiohttp.ClientSession) -> StripeControl:
    return StripeControl(http, stack.ops_url("stripe"))


@pytest.fixture
def account(stack: Stack) -> Account:
    """An account of this test's own with an active subscription."""
    return subscribed_account(stack, "test")


@pytest.fixture
def stranger(stack: Stack) -> Account:
    """An account without a subscription."""
    return make_account(stack, "stranger")


@pytest.fixture
def client_of(stack: Stack, http: aiohttp.ClientSession) -> Callable[[Account], Parley]:
    return lambda account: Parley(http, stack.url("gateway"), account.key)


@pytest.fixture
def parley(account: Account, client_of: Callable[[Account], Parley]) -> Parley:
    return client_of(account)


@pytest.fixture
def marker() -> str:
    """A word that the provider's script is bound to; put `[[marker]]` into the input."""
    return f"case-{uuid4().hex[:12]}"
