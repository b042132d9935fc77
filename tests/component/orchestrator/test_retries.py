"""Providers that fail, limit and fall silent: what is tried again, where, when, and when it is given up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.orchestrator import backoff
from services.orchestrator.config import Settings
from shared.contracts.orchestrator import SessionProgressed
from tests.component.orchestrator.driver import Orchestrator, command, running
from tests.support.bus import eventually
from tests.support.ports import free_port


def models_file(path: Path, *deployments: dict[str, Any], max_output_tokens: int = 100) -> Path:
    """A file of one model, `default`, with these deployments."""
    lines = [f"[models.default]\nmax_output_tokens = {max_output_tokens}"]
    for number, deployment in enumerate(deployments, start=1):
        fields = {
            "name": f"d{number}",
            "provider": "openai",
            "model": f"m{number}",
            "quota_domain": f"q{number}",
            **deployment,
        }
        lines.append("[[models.default.deployments]]")
        lines += [f"{name} = {value!r}".replace("'", '"') for name, value in fields.items()]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def two(surroundings: Orchestrator, tmp_path: Path) -> Settings:
    """Settings with a deployment and its fallback."""
    return surroundings.settings.model_copy(update={"models_file": models_file(tmp_path / "models.toml", {}, {})})


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        ({"kind": "status", "status": 500}, "server_error"),
        ({"kind": "cut", "after_chunks": 3}, "cut"),
        ({"kind": "bad_json"}, "malformed"),
        ({"kind": "empty"}, "empty"),
        ({"kind": "drop"}, "cut"),
    ],
)
async def test_what_passes_is_tried_again(orchestrator: Orchestrator, step: dict[str, Any], outcome: str) -> None:
    await orchestrator.llm.script("case", step)
    ended = await orchestrator.end_of(command("[[case]]"))
    assert (ended.status, ended.final_attempt) == ("completed", 2)
    assert [attempt.outcome for attempt in ended.attempts] == [outcome, "succeeded"]
    assert ended.attempts[0].ended_at <= ended.attempts[1].started_at


async def test_a_pause_that_was_slept_between_two_attempts_stands_in_the_ledger(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("case", {"kind": "status", "status": 500})
    ended = await orchestrator.end_of(command("[[case]]"))
    (wait,) = ended.waits
    assert (wait.reason, wait.after_attempt) == ("retry_backoff", 1)
    assert ended.attempts[0].ended_at <= wait.since < wait.until


async def test_a_fallback_is_tried_at_once(surroundings: Orchestrator, two: Settings) -> None:
    await surroundings.llm.script("case", {"kind": "status", "status": 503})
    async with running(two):
        ended = await surroundings.end_of(command("[[case]]"))
    assert [attempt.deployment for attempt in ended.attempts] == ["d1", "d2"]
    assert ended.waits == ()
    assert [call["model"] for call in await surroundings.llm.calls(marker="case")] == ["m1", "m2"]


async def test_a_deployment_out_of_quota_is_never_asked_again(surroundings: Orchestrator, two: Settings) -> None:
    spent = {"kind": "status", "status": 429, "error": {"code": "insufficient_quota"}}
    await surroundings.llm.script("case", spent, {"kind": "status", "status": 500}, {"kind": "status", "status": 500})
    async with running(two):
        ended = await surroundings.end_of(command("[[case]]"))
        assert [attempt.deployment for attempt in ended.attempts] == ["d1", "d2", "d2", "d2"]
        # It rests for everybody: the next request goes to the fallback first.
        after = await surroundings.end_of(command("[[after]]"))
    assert [attempt.deployment for attempt in after.attempts] == ["d2"]


async def test_without_a_fallback_a_spent_quota_is_the_end(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("case", {"kind": "status", "status": 429, "error": {"code": "insufficient_quota"}})
    ended = await orchestrator.end_of(command("[[case]]"))
    assert ended.error is not None
    assert (ended.status, ended.error.code, len(ended.attempts)) == ("failed", "provider_quota_exhausted", 1)


async def test_a_request_that_the_provider_rejects_is_not_tried_elsewhere(
    surroundings: Orchestrator, two: Settings
) -> None:
    step = {"kind": "status", "status": 400, "error": {"code": "context_length_exceeded", "message": "sk-secret"}}
    await surroundings.llm.script("case", step)
    async with running(two):
        ended = await surroundings.end_of(command("[[case]]"))
    assert ended.error is not None
    assert (ended.error.code, len(ended.attempts)) == ("provider_rejected", 1)
    assert "context_length_exceeded" in ended.error.message
    assert "sk-secret" not in ended.model_dump_json()


async def test_a_retry_after_is_waited_for_in_the_database_and_never_undercut(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("case", {"kind": "status", "status": 429, "retry_after_seconds": 2})
    asked = command("[[case]]")
    await orchestrator.send(asked)
    await eventually(lambda: is_closed(orchestrator))
    other = command("[[other]]")
    await orchestrator.send(other)
    ended = {one.request_id: one for one in await orchestrator.ended(2)}
    first, second = await orchestrator.llm.calls(marker="case")
    assert second["arrived_at"] - first["ended_at"] >= 2
    # Whoever shares the quota waits too, without a call.
    (call,) = await orchestrator.llm.calls(marker="other")
    assert call["arrived_at"] - first["ended_at"] >= 2
    record = ended[asked.request_id]
    assert [attempt.outcome for attempt in record.attempts] == ["rate_limited", "succeeded"]
    assert record.attempts[0].retry_after_seconds == 2
    assert [(wait.reason, wait.after_attempt) for wait in record.waits] == [("provider_rate_limit", 1)]
    assert len(ended[other.request_id].attempts) == 1


async def is_closed(orchestrator: Orchestrator) -> bool:
    return bool(await orchestrator.database.fetchval("SELECT count(*) FROM buckets WHERE closed_until IS NOT NULL"))


async def test_a_retry_after_beyond_the_deadline_ends_the_task_now(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("case", {"kind": "status", "status": 429, "retry_after_seconds": 3600})
    asked = command("[[case]]")
    ended = await orchestrator.end_of(asked)
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("failed", "deadline_exceeded")
    assert "rate_limited (HTTP 429, rate_limit_exceeded)" in ended.error.message
    assert ended.ended_at < asked.deadline_at


async def test_a_limited_deployment_makes_nobody_wait_for_its_fallback(
    surroundings: Orchestrator, two: Settings
) -> None:
    await surroundings.llm.script("case", {"kind": "status", "status": 429, "retry_after_seconds": 3600})
    async with running(two):
        ended = await surroundings.end_of(command("[[case]]"))
        after = await surroundings.end_of(command("[[after]]"))
    assert (ended.status, ended.waits) == ("completed", ())
    assert [attempt.deployment for attempt in after.attempts] == ["d2"]


async def test_failures_longer_than_a_moment_wait_in_the_database(
    orchestrator: Orchestrator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tenth of the real pauses, and none of them short by chance.
    monkeypatch.setattr(backoff, "PAUSE_SECONDS_BASE", backoff.PAUSE_SECONDS_BASE / 10)
    monkeypatch.setattr(backoff, "QUICK_SECONDS_MAX", backoff.QUICK_SECONDS_MAX / 10)
    monkeypatch.setattr("services.orchestrator.runner.random", SimpleNamespace(random=lambda: 0.9))
    await orchestrator.llm.script("case", *[{"kind": "status", "status": 500}] * 6)
    asked = command("[[case]]")
    ended = await orchestrator.end_of(asked)
    assert ended.status == "completed"
    assert len(ended.attempts) == 7
    waits = [wait for wait in ended.waits if wait.reason == "retry_backoff"]
    assert waits

    def told() -> list[SessionProgressed]:
        return [message for message in orchestrator.progressed(asked) if message.waiting_on == "retry_backoff"]

    async def is_told() -> bool:
        return bool(told())

    await eventually(is_told)
    assert all(message.waiting_until is not None for message in told())


async def test_attempts_are_bounded(surroundings: Orchestrator) -> None:
    await surroundings.llm.ask("PUT", "/default", {"kind": "status", "status": 500})
    async with running(surroundings.settings.model_copy(update={"attempts_max": 3})):
        ended = await surroundings.end_of(command())
    assert ended.error is not None
    assert (ended.error.code, len(ended.attempts)) == ("attempts_exhausted", 3)
    assert "server_error (HTTP 500" in ended.error.message


async def test_a_stalled_call_is_cut_and_tried_again(surroundings: Orchestrator) -> None:
    await surroundings.llm.script("case", {"kind": "stall", "after_chunks": 3})
    async with running(surroundings.settings.model_copy(update={"stall_seconds": 0.3})):
        ended = await surroundings.end_of(command("[[case]]"))
    *stalled, last = [attempt.outcome for attempt in ended.attempts]
    assert (set(stalled), last) == ({"stalled"}, "succeeded"), "on a slow machine a plain answer may stall too"
    usage = ended.attempts[0].usage
    assert usage is not None
    assert usage.estimated


async def test_a_provider_that_is_not_there_costs_nothing(surroundings: Orchestrator, tmp_path: Path) -> None:
    gone = {"base_url": f"http://127.0.0.1:{free_port()}/v1", "tokens_per_minute": 10_000}
    path = models_file(tmp_path / "models.toml", gone, {"input_microcents_per_token": 15})
    async with running(surroundings.settings.model_copy(update={"models_file": path})):
        ended = await surroundings.end_of(command())
    assert [attempt.outcome for attempt in ended.attempts] == ["connect_failed", "succeeded"]
    assert ended.attempts[0].usage is None
    assert ended.usage is not None
    assert ended.attempts[1].cost_microcents == 15 * ended.usage.input_tokens
    left = await surroundings.database.fetchval("SELECT tokens FROM buckets WHERE name = 'q1'")
    assert left == pytest.approx(10_000)


async def test_a_length_limit_is_an_incomplete_answer(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("case", {"kind": "length"})
    ended = await orchestrator.end_of(command("[[case]]"))
    assert ended.error is not None
    assert (ended.status, ended.error.code) == ("incomplete", "max_output_tokens")
    assert ended.output is not None
    assert ended.output.text


async def test_a_refusal_of_the_model_is_completed(orchestrator: Orchestrator) -> None:
    await orchestrator.llm.script("case", {"kind": "refusal"})
    ended = await orchestrator.end_of(command("[[case]]"))
    assert ended.output is not None
    assert (ended.status, ended.output.finish_reason) == ("completed", "refusal")
    assert ended.output.items[0].type == "refusal"


async def test_the_bucket_lets_through_what_it_holds_and_the_rest_waits_its_turn(
    surroundings: Orchestrator, tmp_path: Path
) -> None:
    path = models_file(tmp_path / "models.toml", {"requests_per_minute": 120})
    asked = [command(f"{number} [[limited]]") for number in range(5)]
    async with running(surroundings.settings.model_copy(update={"models_file": path})):
        emptied_at = await surroundings.database.fetchval(
            "UPDATE buckets SET refilled_at = clock_timestamp(), requests = 0 WHERE name = 'q1' RETURNING refilled_at"
        )
        await surroundings.send(*asked)
        ended = await surroundings.ended(5)
    assert {one.status for one in ended} == {"completed"}
    assert len(await surroundings.llm.calls(marker="limited")) == 5
    started = sorted(attempt.started_at for one in ended for attempt in one.attempts)
    # Two a second flow in; a fraction is for the service's sample of the database's clock.
    for number, instant in enumerate(started, start=1):
        assert (instant - emptied_at).total_seconds() >= number * 0.5 - 0.2
    waits = [wait for one in ended for wait in one.waits]
    assert {wait.reason for wait in waits} <= {"provider_rate_limit"}
    assert waits or started[0] - emptied_at > timedelta(seconds=2), "who came in time had to wait"


async def test_a_request_above_what_a_bucket_can_hold_fails_at_once(surroundings: Orchestrator, tmp_path: Path) -> None:
    path = models_file(tmp_path / "models.toml", {"tokens_per_minute": 50})
    async with running(surroundings.settings.model_copy(update={"models_file": path})):
        ended = await surroundings.end_of(command("[[big]]"))
    assert ended.error is not None
    assert (ended.error.code, ended.attempts) == ("tokens_above_limit", ())
    assert await surroundings.llm.calls(marker="big") == []


async def test_an_estimate_is_settled_to_what_was_used(surroundings: Orchestrator, tmp_path: Path) -> None:
    path = models_file(tmp_path / "models.toml", {"tokens_per_minute": 1000})
    async with running(surroundings.settings.model_copy(update={"models_file": path})):
        ended = await surroundings.end_of(command("settle"))
        assert ended.usage is not None
        row = await surroundings.database.fetchrow("SELECT tokens, refilled_at FROM buckets WHERE name = 'q1'")
    assert row is not None
    assert row["tokens"] == pytest.approx(1000 - ended.usage.total_tokens)


async def test_a_wait_for_the_bucket_beyond_the_deadline_ends_the_task_now(
    surroundings: Orchestrator, tmp_path: Path
) -> None:
    path = models_file(tmp_path / "models.toml", {"requests_per_minute": 1})
    await surroundings.database.execute(
        "INSERT INTO buckets (name, refilled_at, requests) VALUES ('q1', clock_timestamp(), 0)"
    )
    async with running(surroundings.settings.model_copy(update={"models_file": path})):
        ended = await surroundings.end_of(command(deadline_at=datetime.now(UTC) + timedelta(seconds=10)))
    assert ended.error is not None
    assert ended.error.code == "deadline_exceeded"
    assert "provider_rate_limit" in ended.error.message


@pytest.mark.usefixtures("quick_beats")
async def test_deployments_that_rest_are_known_to_all_replicas(surroundings: Orchestrator, two: Settings) -> None:
    await surroundings.llm.script("case", {"kind": "status", "status": 401})
    async with running(two):
        await surroundings.end_of(command("[[case]]"))
    rows = await surroundings.database.fetch("SELECT deployment, reason FROM cooldowns")
    assert [(row["deployment"], row["reason"]) for row in rows] == [("d1", "unauthorized")]
    # A new process hears of it with its first heartbeat.
    async with running(two):

        async def avoided() -> bool:
            return (await surroundings.end_of(command())).attempts[0].deployment == "d2"

        await eventually(avoided)
