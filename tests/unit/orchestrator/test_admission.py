"""How long a turn waits where billing gives no answer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

from services.orchestrator.admission import Admission
from services.orchestrator.routing import Deployment, Model, Models, Routing
from services.orchestrator.task import Task, Wait
from shared.contracts.content import CallSettings, MessageItem
from shared.contracts.gateway import SessionRequested
from shared.contracts.orchestrator import WaitRecord
from shared.errors import Transient
from shared.http_client import InternalApi
from tests.support.clock import FakeClock

ONLY = Deployment(name="main", provider="openai", model="m", quota_domain="openai")


class Away:
    """A peer that is not there."""

    async def post(self, *_: Any) -> bytes:
        raise Transient("away")


def asked_long_ago(clock: FakeClock) -> SessionRequested:
    return SessionRequested(
        request_id="req_1",
        account_id="acct_1",
        session_id="ses_1",
        seq=1,
        input=(MessageItem(role="user", content="hello"),),
        settings=CallSettings(),
        accepted_at=clock.now() - timedelta(hours=1),
        deadline_at=clock.now() + timedelta(hours=1),
        grace_seconds=30,
    )


def waited(clock: FakeClock, seconds: float, reason: Any) -> WaitRecord:
    return WaitRecord(reason=reason, after_attempt=0, since=clock.now() - timedelta(seconds=seconds), until=clock.now())


async def test_the_pause_grows_with_the_wait_for_billing_and_not_with_that_in_the_queue() -> None:
    clock, away = FakeClock(), cast(InternalApi, Away())
    admission = Admission(away, away, Routing(Models(models={"default": Model(deployments=(ONLY,))})), clock)
    command = asked_long_ago(clock)
    queued = Task(command, waits=(waited(clock, 600, "capacity"),))
    refused = Task(command, waits=(waited(clock, 600, "capacity"), waited(clock, 12, "eligibility")))
    [first] = await admission.ask_all([command])
    for answer, low, high in (
        (first, 0.75, 1.25),
        (await admission.ask(queued), 0.75, 1.25),
        (await admission.ask(refused), 4.5, 7.5),
    ):
        assert isinstance(answer, Wait)
        assert answer.waiting_on == "eligibility"
        assert timedelta(seconds=low) <= answer.until - clock.now() <= timedelta(seconds=high)
