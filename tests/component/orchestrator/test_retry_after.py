"""What a provider says about when to come back holds for everybody, whatever becomes of who heard it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.component.orchestrator.driver import Orchestrator, command, running
from tests.component.orchestrator.test_outages import proxy as proxy  # noqa: PLC0414 - a fixture
from tests.component.orchestrator.test_outages import through
from tests.component.orchestrator.test_workers import expire_all_leases
from tests.support.bus import eventually
from tests.support.counted import counted
from tests.support.faults.proxy import Proxy


@pytest.mark.usefixtures("quick_beats")
async def test_a_retry_after_that_a_lost_worker_heard_closes_the_provider(
    surroundings: Orchestrator,
    proxy: Proxy,
) -> None:
    await surroundings.llm.script("closed", {"kind": "status", "status": 429, "retry_after_seconds": 45})
    await surroundings.llm.close_gate("g", "closed")
    asked, heard_before = command("[[closed]]"), counted("attempts", outcome="rate_limited")

    async def is_heard() -> bool:
        return counted("attempts", outcome="rate_limited") > heard_before

    async with running(through(surroundings.settings, proxy)) as app:
        await surroundings.send(asked)
        await surroundings.llm.wait("held >= 1", marker="closed")
        proxy.set_mode("refuse")
        proxy.cut()
        await surroundings.llm.open_gate("g")
        await eventually(is_heard)
        heard_at = datetime.now(UTC)
        await surroundings.lease_ends(app)
        await expire_all_leases(surroundings)
        proxy.heal()

        async def is_closed() -> bool:
            until = await surroundings.database.fetchval("SELECT closed_until FROM buckets WHERE name = 'openai'")
            return until is not None and until > heard_at + timedelta(seconds=30)

        await eventually(is_closed)
        await surroundings.has_state(asked, "backing_off", "provider_rate_limit")
    assert len(await surroundings.llm.calls(marker="closed")) == 1, "nobody came back before the time"
