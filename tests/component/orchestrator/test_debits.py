"""A bucket is debited for calls that are made, and for no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from services.orchestrator.store import Arrival, TaskStore
from shared.contracts.gateway import SessionRequested
from tests.component.orchestrator.driver import Orchestrator, cancel_of, command, running
from tests.component.orchestrator.test_races import Held

TWO_A_MINUTE = """
[models.default]
[[models.default.deployments]]
name = "main"
provider = "openai"
model = "m"
quota_domain = "narrow"
requests_per_minute = 2
"""


async def test_who_is_not_first_to_insert_a_task_pays_nothing_for_its_call(
    surroundings: Orchestrator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "models.toml"
    path.write_text(TWO_A_MINUTE)
    held, look = Held(), TaskStore.select_arrivals

    async def look_and_wait(self: TaskStore, commands: Sequence[SessionRequested]) -> dict[str, Arrival]:
        found = await look(self, commands)
        await held.here()
        return found

    monkeypatch.setattr(TaskStore, "select_arrivals", look_and_wait)
    asked, neighbour = command(), command()
    async with running(surroundings.settings.model_copy(update={"models_file": path})):
        await surroundings.send(asked, neighbour)
        await held.somebody()
        # Now the look has not seen the task that this inserts.
        await surroundings.send(cancel_of(asked))
        await surroundings.ended()
        held.go.set()
        ended = {one.request_id: one.status for one in await surroundings.ended(3)}
    assert ended == {asked.request_id: "cancelled", neighbour.request_id: "completed"}
    left = await surroundings.database.fetchval("SELECT requests FROM buckets WHERE name = 'narrow'")
    assert left >= 1, "of two a minute one was used"
