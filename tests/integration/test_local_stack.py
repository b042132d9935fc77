"""The launcher of whole stacks: ready is usable, a process comes back where it was, a failed start leaves nothing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest

from deploy.local import demo
from deploy.local.daemon import DaemonError
from deploy.local.environment import LLM
from deploy.local.plain_http import answers_ok, ask
from deploy.local.servers import RabbitMQ
from deploy.local.stack import running
from tests.support.guard import GUARD_SECONDS
from tests.support.servers import Databases, Vhosts
from tests.support.stack import Stack, running_stack, subscribed_account


def test_an_account_of_a_fresh_stack_may_send_requests(stack: Stack) -> None:
    account = subscribed_account(stack, "first")
    base = stack.url("gateway")
    session = ask("POST", f"{base}/v1/sessions", key=account.key, body={})
    accepted = ask("POST", f"{base}/v1/sessions/{session['id']}/requests", key=account.key, body={"input": "hello"})
    assert accepted["status"] in ("queued", "in_progress")


def test_a_request_that_takes_its_time_is_told_of_until_it_ends(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    said: Queue[str] = Queue()
    monkeypatch.setattr(demo, "print", lambda text, flush=False: said.put(text), raising=False)
    monkeypatch.setattr(demo, "PATIENCE_SECONDS", 0)
    monkeypatch.setattr(demo, "QUESTION", "What is a gate? [[shown-slowly]]")
    account = subscribed_account(stack, "shown")
    gate = f"{stack.ops_url(LLM)}/gates/shown-slowly"
    ask("PUT", gate, body={"match": {"marker": "shown-slowly"}})
    with ThreadPoolExecutor(1) as pool:
        showing = pool.submit(demo.show_one_request, stack.url("gateway"), account)
        try:
            while "in_progress after" not in said.get(timeout=GUARD_SECONDS):
                pass
        finally:
            ask("DELETE", gate)
        showing.result(timeout=GUARD_SECONDS)
    assert any("-> completed" in said.get_nowait() for _ in range(said.qsize()))


def test_a_killed_service_is_named_and_comes_back_under_its_address(stack: Stack) -> None:
    address = stack.ops_url("results")
    stack.kill_process("results")
    assert stack.dead() == ["results"]
    assert not answers_ok(f"{address}/healthz")
    stack.start_process("results")
    assert stack.dead() == []
    assert answers_ok(f"{address}/healthz")


def test_a_service_that_cannot_start_is_shown_with_its_log_and_the_others_are_ended(
    tmp_path: Path, rabbitmq_server: RabbitMQ, databases: Databases, vhosts: Vhosts
) -> None:
    broken = {"billing": {"PLANS_FILE": str(tmp_path / "absent.toml")}}
    with (
        pytest.raises(DaemonError, match=r"(?s)billing ended before it was ready.*absent\.toml"),
        running_stack(tmp_path, rabbitmq_server, databases, vhosts, overrides=broken),
    ):
        pytest.fail("the stack must not start")
    assert not running(tmp_path)
