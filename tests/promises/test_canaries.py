"""P12: what is planted as key, prompt, output or payload is in no log, error body, metric or list of the operator."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import pytest
from stripe import WebhookSignature

from deploy.local.environment import REPOSITORY, SERVICES
from deploy.local.stack import Stack
from shared.contracts.billing import Eligibility, EligibilityChanged
from shared.contracts.message import Message
from shared.ids import new_id
from shared.messaging.topology import QUEUES
from tests.component.billing.driver import event_of
from tests.promises.evidence import gather_evidence
from tests.support.guard import GUARD_SECONDS
from tests.support.parley import Parley
from tests.support.ports import free_port
from tests.support.result_messages import NOW, ended, output_of, progressed
from tests.support.stack import Account, subscribed_account
from tests.support.standins import LlmControl, StripeControl

CANARY: Final = f"canary{uuid4().hex}"

# Each is sent as it stands, on a connection of its own.
NOT_HTTP: Final = (
    f"{CANARY}\r\n\r\n",
    f"{CANARY} /v1/sessions HTTP/1.1\r\nHost: x\r\n\r\n",
    f"GET /{CANARY} HTTP/9.9\r\nHost: x\r\n\r\n",
    f"GET /v1/sessions HTTP/1.1\r\nHost: x\r\n{CANARY}\r\n\r\n",
    f"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CANARY}\0\r\n\r\n",
    f"GET /v1/sessions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CANARY * 1000}\r\n\r\n",
    f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Length: {CANARY}\r\n\r\n",
    f"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY}\r\n",
)

# What the provider does to a prompt with a canary in it: its errors quote, its answers are cut, odd or no JSON at all.
PROVIDER: Final[tuple[dict[str, Any], ...]] = (
    {"kind": "ok", "text": f"the answer is {CANARY}"},
    {"kind": "length", "text": f"the answer is {CANARY}"},
    {"kind": "refusal", "text": f"no {CANARY}"},
    {"kind": "tool_calls", "tool_calls": [{"name": CANARY, "arguments": f"{{{CANARY}"}]},
    {"kind": "status", "status": 400, "error": {"message": CANARY, "code": f"no {CANARY}", "param": CANARY}},
    {"kind": "status", "status": 401, "error": {"message": f"Incorrect API key provided: {CANARY}"}},
    {"kind": "status", "status": 404, "body": f"<html>{CANARY}</html>"},
    {"kind": "stream_error", "error": {"message": f"in the middle of {CANARY}", "type": "invalid_request_error"}},
    {"kind": "redirect", "location": f"http://127.0.0.1:1/{CANARY}"},
)


@dataclass
class Seen:
    """Everything that somebody beside the owner may read."""

    texts: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, text: str) -> None:
        self.texts[f"{name} #{len(self.texts)}"] = text

    def leaks(self, *planted: str) -> list[str]:
        found = []
        for name, text in self.texts.items():
            for line in text.splitlines():
                found += [f"{name}: {line[:300]}" for word in planted if word in line]
        return found


@dataclass
class Scene:
    stack: Stack
    http: aiohttp.ClientSession
    account: Account
    seen: Seen

    @property
    def parley(self) -> Parley:
        return Parley(self.http, self.stack.url("gateway"), self.account.key)

    async def error(
        self,
        service: str,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> None:
        """A call that must be refused; what it is told is kept."""
        url = self.stack.url(service) + path
        async with self.http.request(method, url, headers=headers, data=data) as response:
            assert response.status >= 400, (method, path)
            self.seen.add(f"{method} {path}", f"{dict(response.headers)}\n{await response.text()}")


@pytest.fixture
async def scene(stack: Stack, http: aiohttp.ClientSession) -> Scene:
    return Scene(stack, http, await asyncio.to_thread(subscribed_account, stack, "canary"), Seen())


async def test_no_canary_is_seen_by_anybody_but_its_owner(scene: Scene, llm: LlmControl, stripe: StripeControl) -> None:
    async with gather_evidence(scene.stack, scene.http) as evidence:
        await asyncio.gather(*(send_a_secret_turn(scene, llm, step) for step in PROVIDER))
        await send_bad_requests(scene)
        await send_bad_webhooks(scene)
        await send_no_http(scene)
        await break_stripe(scene, stripe)
        for queue in QUEUES:
            for routing_key in queue.bindings:
                for body, headers, content_type in bad_messages(routing_key):
                    await evidence.bus.send_raw(routing_key, body, headers, content_type)
        for message in unstorable(scene.account):
            await evidence.bus.send(message)
        await evidence.quiet()
        for name, page in (await evidence.metrics()).items():
            scene.seen.add(f"metrics of {name}", page)
    for name in scene.stack.processes:
        scene.seen.add(f"log of {name}", scene.stack.log(name).read_text())
    parked = await asyncio.gather(*(asyncio.to_thread(list_and_show_parked, scene, service) for service in SERVICES))
    assert set().union(*parked) == {"invalid_body", "database_refused", "wrong_content_type", "missing_attribute"}
    secrets = scene.stack.secrets
    planted = (CANARY, scene.account.key, secrets.service_token, secrets.api_key_pepper)
    assert scene.seen.leaks(*planted, secrets.stripe_api_key, secrets.stripe_webhook_secret, "guest:guest") == []


async def send_a_secret_turn(scene: Scene, llm: LlmControl, step: dict[str, Any]) -> None:
    """Only its owner's own words may come back, and of a provider's error not even that."""
    marker = uuid4().hex
    await llm.ask("POST", "/rules", {"rules": [{"match": {"marker": marker}, "steps": [step], "repeat": True}]})
    session_id = await scene.parley.session(instructions=f"keep {CANARY}", metadata={CANARY: CANARY})
    schema = {"type": "json_schema", "name": "x", "schema": {"type": "object", "description": CANARY}}
    request_id = await scene.parley.post(
        session_id, f"{CANARY} [[{marker}]]", metadata={"secret": CANARY}, response_format=schema, deadline_seconds=4
    )
    ended = await scene.parley.wait_ended(request_id)
    scene.seen.add(f"error of {step['kind']}", json.dumps(ended["error"]))
    scene.seen.add(f"timeline of {step['kind']}", json.dumps(await scene.parley.timeline(request_id)))


async def send_bad_requests(scene: Scene) -> None:
    own = {"authorization": f"Bearer {scene.account.key}", "content-type": "application/json"}
    for authorization in (f"Bearer {CANARY}", f"Bearer pk_live_{CANARY}", f"Basic {CANARY}", CANARY):
        await scene.error("gateway", "GET", "/v1/sessions", headers={"authorization": authorization})
        await scene.error("billing", "POST", "/internal/holds", headers={"authorization": authorization})
        await scene.error("results", "POST", "/internal/results/lookup", headers={"authorization": authorization})
    for path in (f"/v1/sessions?api_key={CANARY}", f"/v1/requests?cursor={CANARY}", f"/v1/requests?status={CANARY}"):
        await scene.error("gateway", "GET", path, headers=own)
    for path in (f"/{CANARY}", f"/v1/sessions/{CANARY}", f"/v1/requests/{CANARY}/timeline"):
        await scene.error("gateway", "GET", path, headers=own)
    session_path = f"/v1/sessions/{await scene.parley.session()}/requests"
    for body in (
        CANARY,
        json.dumps({"input": CANARY, "temperature": CANARY, "model": f"no {CANARY}"}),
        json.dumps({"input": CANARY, "model": CANARY}),
        json.dumps({"input": [{"role": CANARY, "content": CANARY}]}),
        json.dumps({"input": CANARY, "response_format": {"type": CANARY}}),
        json.dumps({"input": CANARY, "metadata": {"key": [CANARY]}}),
        json.dumps({"input": f"{CANARY}\0"}),
    ):
        await scene.error("gateway", "POST", session_path, headers=own, data=body.encode())
    for header in ("idempotency-key", "content-type", "last-event-id"):
        path = f"/v1/requests/{new_id('req')}/events" if header == "last-event-id" else session_path
        method = "GET" if header == "last-event-id" else "POST"
        await scene.error("gateway", method, path, headers={**own, header: f'"{CANARY}'}, data=b"{}")


async def send_bad_webhooks(scene: Scene) -> None:
    secret = scene.stack.secrets.stripe_webhook_secret
    found = {"object": "subscription", "id": scene.account.subscription_id, "metadata": {"card": CANARY}}
    known = json.dumps(event_of({**found, "customer": {"id": scene.account.customer_id, "email": CANARY}}))
    broken = (CANARY, json.dumps([CANARY]), json.dumps(event_of(found, id=f"{CANARY} no id")))
    malformed = json.dumps(event_of(found, data={"object": CANARY}))
    for body in (*broken, malformed):
        header = WebhookSignature.generate_signature_header(body, secret, int(time.time()))
        headers = {"stripe-signature": header}
        await scene.error("billing", "POST", "/webhooks/stripe", headers=headers, data=body.encode())
    for header in (CANARY, f"t={CANARY},v1={CANARY}", f"t={int(time.time())},v1={CANARY}"):
        headers = {"stripe-signature": header}
        await scene.error("billing", "POST", "/webhooks/stripe", headers=headers, data=known.encode())
    headers = {"stripe-signature": WebhookSignature.generate_signature_header(known, secret, int(time.time()))}
    url = f"{scene.stack.url('billing')}/webhooks/stripe"
    async with scene.http.post(url, headers=headers, data=known.encode()) as response:
        assert response.status == 200


async def send_no_http(scene: Scene) -> None:
    for service in ("gateway", "billing", "results"):
        for url in (scene.stack.url(service), scene.stack.ops_url(service)):
            for text in NOT_HTTP:
                answer = await raw_answer(url, text.encode("latin-1"))
                assert answer.startswith("HTTP/1."), answer
                scene.seen.add(f"{service} answers {text[:40]!r}", answer)


async def raw_answer(url: str, sent: bytes) -> str:
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(sent)
        async with asyncio.timeout(GUARD_SECONDS):
            return (await reader.read()).decode("latin-1")
    finally:
        writer.close()


async def break_stripe(scene: Scene, stripe: StripeControl) -> None:
    """Stripe's own errors quote what it was sent, the key among it."""
    error = {
        "type": "invalid_request_error",
        "message": f"Invalid API Key provided: {CANARY}",
        "code": f"no {CANARY}",
        "param": CANARY,
    }
    await stripe.ask(
        "POST",
        "/faults",
        {"rules": [{"match": {"path": "/v1/billing_portal/sessions"}, "steps": [{"status": 400, "error": error}]}]},
    )
    body = json.dumps({"return_url": f"https://shop.example/{CANARY}"}).encode()
    headers = {"authorization": f"Bearer {scene.account.key}", "content-type": "application/json"}
    await scene.error("gateway", "POST", "/v1/billing/portal", headers=headers, data=body)


def bad_messages(routing_key: str) -> Iterator[tuple[bytes, dict[str, Any], str]]:
    """A body that is not as agreed, an attribute that is missing, a content type that nobody reads."""
    headers = {"ce-specversion": "1.0", "ce-id": "of-a-test", "ce-source": "/tests", "ce-type": routing_key}
    headers |= {"authorization": f"Bearer {CANARY}", "prompt": CANARY}
    body = {"request_id": [CANARY], "account_id": {CANARY: CANARY}, "eligibility": CANARY, "output": CANARY}
    content = json.dumps(body).encode()
    yield content, headers, "application/json"
    yield CANARY.encode(), headers, "application/json"
    yield content, {**headers, "ce-id": ""}, "application/json"
    yield content, headers, f"application/{CANARY}"


def unstorable(account: Account) -> list[Message]:
    """Good messages whose text PostgreSQL refuses to store."""
    text = f"{CANARY}\0"
    decision = Eligibility(decision="ALLOW", reasons=(text,))
    changed = EligibilityChanged(account_id=account.id, sequence=2**40, eligibility=decision, decided_at=NOW)
    return [changed, ended(new_id("req"), output_of(text)), progressed(new_id("req"), 1, [text])]


def list_and_show_parked(scene: Scene, service: str) -> set[str]:
    """The reasons of everything that is parked; what the operator's commands print about it is kept."""
    listed = scene.stack.command(service, "parked", "list")
    parked = [json.loads(line) for line in listed.splitlines() if line.startswith("{")]
    shown = scene.stack.command(service, "parked", "show", *(str(row["id"]) for row in parked))
    scene.seen.add(f"parked list and show of {service}", f"{listed}\n{shown}")
    return {row["reason"].partition(":")[0] for row in parked}


@pytest.mark.parametrize(
    ("changes", "words", "says"),
    [
        ({"RESULTS_DATABASE_URL": f"postgresql://parley:{CANARY}@127.0.0.1:1/x"}, (), "database.unreachable"),
        ({"RESULTS_DATABASE_URL": f"postgresql://parley:{CANARY}/x@127.0.0.1/x"}, (), "RESULTS_DATABASE_URL"),
        ({"RESULTS_DATABASE_URL": f"postgresql://parley:{CANARY}@127.0.0.1:1/x"}, ("parked", "list"), "database"),
        ({"AMQP_URL": "amqp://guest:{canary}@{host}"}, (), "broker.unreachable"),
        ({"AMQP_URL": f"amqp://guest:{CANARY}/x@127.0.0.1/x"}, (), "AMQP_URL"),
        (
            {"AMQP_URL": CANARY, "RESULTS_DATABASE_URL": CANARY, "HTTP_PORT": CANARY, "LOG_LEVEL": CANARY},
            (),
            "AMQP_URL",
        ),
    ],
)
async def test_a_process_that_cannot_start_says_why_without_a_password(
    stack: Stack, changes: Mapping[str, str], words: tuple[str, ...], says: str
) -> None:
    host = stack.urls["AMQP_URL"].rpartition("@")[2]
    changes = {name: value.format(canary=CANARY, host=host) for name, value in changes.items()}
    process = await asyncio.create_subprocess_exec(
        *stack.processes["results"].command(),
        *words,
        env={
            **stack.processes["results"].environ,
            "HTTP_PORT": str(free_port()),
            "OPS_PORT": str(free_port()),
            **changes,
        },
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout
    printed = ""
    try:
        async with asyncio.timeout(GUARD_SECONDS):
            while says not in printed and (line := await process.stdout.readline()):
                printed += line.decode()
    finally:
        if process.returncode is None:
            process.kill()
    rest = (await process.stdout.read()).decode()
    await process.wait()
    assert says in printed
    assert CANARY not in printed + rest
