"""The examples do what they say, run as a reader would run them: as processes, over networks that drop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aio_pika
import aiohttp
import pytest
from aiohttp import web

from examples.browser import serve
from shared.contracts.results import ResultCompleted
from shared.messaging.broker import Broker
from tests.support.bus import bus, eventually
from tests.support.cutting_proxy import REFUSED, cutting_proxy
from tests.support.parley import Parley
from tests.support.ports import free_port
from tests.support.result_messages import ACCOUNT, NOW, SESSION, output_of
from tests.support.stack import Account, Stack
from tests.support.standins import LlmControl

EXAMPLES = Path(__file__).parents[2] / "examples"
DRIVER = Path(__file__).parent / "browser_client.mjs"
BAD_NETWORK = (0, REFUSED, 300, 20_000, 0, 900, 20_000, REFUSED)
SLOW_ANSWER = {"kind": "ok", "words": 50, "between_chunks_ms": 60}
TIMEOUT_SECONDS = 60

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    status: int
    out: str
    err: str


async def run(*command: str, environ: Mapping[str, str] | None = None) -> Ended:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={"PATH": os.environ["PATH"], **(environ or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def test_polling_through_a_network_that_drops_misses_nothing_and_pays_once(
    stack: Stack, account: Account, parley: Parley, llm: LlmControl, marker: str
) -> None:
    await llm.script(marker, {"kind": "cut", "after_chunks": 3}, SLOW_ANSWER)
    async with cutting_proxy(stack.url("gateway"), BAD_NETWORK) as proxy:
        environ = {"PARLEY_URL": f"http://127.0.0.1:{proxy.port}", "PARLEY_API_KEY": account.key}
        ended = await run(sys.executable, str(EXAMPLES / "poll.py"), f"Hello [[{marker}]]", environ=environ)
    assert ended.status == 0, ended.err
    (request,) = (await parley.ask("GET", "/v1/requests"))["data"]
    stored = (await parley.get(request["id"]))["output"]["text"]
    assert ended.out == f"{stored}\n"
    assert _shown(ended.err) == stored, "the deltas alone add up to what was stored"
    assert proxy.cuts >= 4
    assert ended.err.count("[request.completed]") == 1
    assert len((await parley.ask("GET", "/v1/sessions"))["data"]) == 1
    assert len(await llm.calls(marker=marker)) == 2, "no repeat of a POST became a call"


def _shown(err: str) -> str:
    """What stood on the screen at the end, without the notes in brackets, which have lines of their own."""
    after_supersession = err.rpartition("forget the text above]\n")[2]
    return re.sub(r"\n\[[^\n]*\]\n", "", after_supersession)


async def test_polling_says_what_parley_refused(stack: Stack, stranger: Account) -> None:
    environ = {"PARLEY_URL": stack.url("gateway"), "PARLEY_API_KEY": stranger.key}
    ended = await run(sys.executable, str(EXAMPLES / "poll.py"), "Hello", environ=environ)
    assert ended.status == 1
    assert "no_subscription" in ended.err
    assert ended.out == ""


async def test_polling_gives_up_when_nobody_answers_for_long(stack: Stack) -> None:
    environ = {"PARLEY_URL": f"http://127.0.0.1:{free_port()}", "PARLEY_API_KEY": "pk_live_none"}
    ended = await run(sys.executable, str(EXAMPLES / "poll.py"), "Hello", "--patience", "0.5", environ=environ)
    assert ended.status == 1
    assert "no answer" in ended.err


async def test_an_example_that_cannot_begin_says_why_in_a_line() -> None:
    away = f"127.0.0.1:{free_port()}"
    cases = {
        ("poll.py", "Hello"): ({"PARLEY_URL": away, "PARLEY_API_KEY": "x"}, "PARLEY_URL must start with http"),
        ("subscriber.py",): ({"AMQP_URL": f"amqp://guest:guest@{away}/"}, "cannot reach the broker"),
        ("browser/serve.py", "99999"): ({"PARLEY_URL": f"http://{away}", "PARLEY_API_KEY": "x"}, "cannot listen on"),
    }
    for (script, *arguments), (environ, complaint) in cases.items():
        ended = await run(sys.executable, str(EXAMPLES / script), *arguments, environ=environ)
        assert ended.status == 1, script
        assert complaint in ended.err.splitlines()[-1]
        assert "Traceback" not in ended.err
    for script in ("poll.py", "subscriber.py", "browser/serve.py"):
        ended = await run(sys.executable, str(EXAMPLES / script), "--help")
        assert (ended.status, ended.err) == (0, "")


@needs_node
async def test_a_page_that_is_left_and_opened_again_goes_on_where_it_was(
    stack: Stack, account: Account, parley: Parley, llm: LlmControl, marker: str, tmp_path: Path
) -> None:
    await llm.script(marker, SLOW_ANSWER)
    storage = str(tmp_path / "storage.json")
    async with (
        served(stack.url("gateway"), account.key) as page_url,
        cutting_proxy(page_url, BAD_NETWORK) as proxy,
    ):
        url = f"http://127.0.0.1:{proxy.port}"
        left = await run("node", str(DRIVER), url, storage, "ask", f"Hello [[{marker}]]", "3")
        assert left.status == 9, left.err
        kept = json.loads(json.loads(Path(storage).read_text())["parley.turn"])
        resumed = await run("node", str(DRIVER), url, storage, "resume")
    assert resumed.status == 0, resumed.err
    told = json.loads(resumed.out)
    assert told["texts"][0] == kept["text"] != "", "the text of before is there at once"
    assert told["texts"][-1] == told["request"]["output"]["text"]
    assert all(later.startswith(kept["text"]) for later in told["texts"]), "nothing was read twice"
    assert "parley.turn" not in told["stored"]
    assert len(await llm.calls(marker=marker)) == 1
    assert len((await parley.ask("GET", "/v1/requests"))["data"]) == 1


@needs_node
async def test_a_page_that_is_left_before_its_post_was_answered_sends_the_same_one_again(
    stack: Stack, account: Account, parley: Parley, llm: LlmControl, marker: str, tmp_path: Path
) -> None:
    storage = tmp_path / "storage.json"
    storage.write_text(json.dumps({"parley.session": await parley.session()}))
    async with served(stack.url("gateway"), account.key) as page_url:
        async with cutting_proxy(page_url, [0]) as proxy:  # no answer ever arrives
            url = f"http://127.0.0.1:{proxy.port}"
            asking = asyncio.create_task(run("node", str(DRIVER), url, str(storage), "ask", f"[[{marker}]]"))
            await llm.wait("calls >= 1", marker=marker)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert json.loads(json.loads(storage.read_text())["parley.turn"])["id"] is None
        resumed = await run("node", str(DRIVER), page_url, str(storage), "resume")
    assert resumed.status == 0, resumed.err
    (request,) = (await parley.ask("GET", "/v1/requests"))["data"]
    assert json.loads(resumed.out)["request"]["id"] == request["id"]
    assert len(await llm.calls(marker=marker)) == 1


async def test_the_page_is_served_beside_the_api_and_never_shows_the_key(
    stack: Stack, account: Account, http: aiohttp.ClientSession
) -> None:
    said = {}
    async with served(stack.url("gateway"), account.key) as url:
        for path in ("/", "/parley.js", "/v1/eligibility"):
            async with http.get(url + path) as answer:
                assert answer.status == 200
                said[path] = f"{answer.headers}{await answer.text()}"
    assert "<form>" in said["/"]
    assert "javascript" in said["/parley.js"]
    assert '"decision"' in said["/v1/eligibility"]
    assert not any(account.key in text for text in said.values())


@asynccontextmanager
async def served(parley_url: str, api_key: str) -> AsyncIterator[str]:
    runner = web.AppRunner(serve.make_app(parley_url, api_key), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_a_subscriber_hears_each_ending_once_however_often_it_is_sent(amqp_url: str) -> None:
    broker = Broker(amqp_url, service="test", settle_seconds=0)
    await broker.start()
    first, second = _result("1"), _result("2")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(EXAMPLES / "subscriber.py"), "--queue", "ext.test", "--count", "2"),
        env={"PATH": os.environ["PATH"], "AMQP_URL": amqp_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with bus(amqp_url) as plain, asyncio.timeout(TIMEOUT_SECONDS):
        assert await process.stderr.readline() == b"listening on ext.test\n"
        for message in (first, first, first, second):
            await plain.send(message)
        out, _ = await process.communicate()
        heard = [json.loads(line) for line in out.splitlines()]
        assert [line["id"] for line in heard] == [first.id, second.id]
        assert heard[0]["characters"] == len("Hello")

        async def emptied() -> bool:
            return await plain.count("ext.test") == 0

        await eventually(emptied)
    await broker.stop()


async def test_a_subscriber_that_was_away_hears_what_it_missed(amqp_url: str) -> None:
    broker = Broker(amqp_url, service="test", settle_seconds=0)
    await broker.start()
    subscriber = (sys.executable, str(EXAMPLES / "subscriber.py"), "--queue", "ext.test", "--count", "1")
    async with bus(amqp_url) as plain:
        listening = asyncio.create_task(run(*subscriber, environ={"AMQP_URL": amqp_url}))
        await eventually(lambda: _is_bound(amqp_url))
        await plain.send(_result("1"))
        assert json.loads((await listening).out)["id"] == _result("1").id
        await plain.send(_result("2"))
        back = await run(*subscriber, environ={"AMQP_URL": amqp_url})
        assert json.loads(back.out)["id"] == _result("2").id
    await broker.stop()


async def _is_bound(amqp_url: str) -> bool:
    """Whether the subscriber consumes: it does so once its bindings stand."""
    async with bus(amqp_url) as plain:
        try:
            declared = await plain.channel.declare_queue("ext.test", passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return bool(declared.declaration_result.consumer_count)


def _result(digit: str) -> ResultCompleted:
    return ResultCompleted(
        request_id="req_" + digit * 32,
        account_id=ACCOUNT,
        session_id=SESSION,
        seq=1,
        cursor=1,
        status="completed",
        output=output_of("Hello"),
        provider_called=True,
        ended_at=NOW,
        ended_by="session.ended",
    )
