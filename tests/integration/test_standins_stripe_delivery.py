"""The Stripe stand-in's webhooks: signed so that the SDK accepts them, and spoilt in exactly the ways asked for."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
import stripe
from aiohttp import web

from deploy.local.standins.starting import Standin, standin
from tests.support.guard import GUARD_SECONDS

stripe.enable_telemetry = False
SECRET = "whsec_right"
SDK = stripe.StripeClient("sk_test_x")


class Receiver:
    """A webhook endpoint that keeps what it got; `answers` are its next statuses, 200 after them."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, str | None]] = []
        self.answers: list[int] = []
        self.url = ""

    async def receive(self, request: web.Request) -> web.Response:
        self.got.append((await request.read(), request.headers.get("Stripe-Signature")))
        return web.Response(status=self.answers.pop(0) if self.answers else 200)

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for body, _ in self.got]

    @property
    def names(self) -> list[str]:
        return [json.loads(body)["data"]["object"]["name"] for body, _ in self.got]

    def event(self, index: int, secret: str = SECRET) -> stripe.Event:
        body, header = self.got[index]
        return SDK.construct_event(body, header, secret)


@pytest.fixture(scope="module")
def process() -> Iterator[Standin]:
    with standin("stripe", "--webhook-secret", SECRET) as started:
        yield started


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/webhooks", receiver.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks"
    yield receiver
    await runner.cleanup()


@pytest.fixture
async def control(process: Standin, receiver: Receiver) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=process.control_url, timeout=1.5 * GUARD_SECONDS) as client:
        assert (await client.post("/reset")).status_code == 200
        assert (await client.put("/delivery", json={"url": receiver.url, "retry_ms": 5})).status_code == 200
        yield client


@pytest.fixture
async def api(process: Standin, control: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=process.url, headers={"Authorization": "Bearer sk_test_x"}, timeout=GUARD_SECONDS
    ) as client:
        yield client


async def make(api: httpx.AsyncClient, path: str, **params: Any) -> dict[str, Any]:
    reply = await api.post(f"/v1/{path}", data=params)
    assert reply.status_code == 200, reply.text
    made: dict[str, Any] = reply.json()
    return made


async def treat(control: httpx.AsyncClient, *steps: dict[str, Any], **match: str) -> None:
    reply = await control.post("/delivery/rules", json={"rules": [{"match": match, "steps": list(steps)}]})
    assert reply.status_code == 200, reply.text


async def all_done(control: httpx.AsyncClient) -> dict[str, int]:
    reply = await control.post("/await", json={"until": "pending == 0", "timeout_seconds": GUARD_SECONDS})
    assert reply.status_code == 200, reply.text
    counters: dict[str, int] = reply.json()
    return counters


async def test_every_change_is_delivered_in_order_and_the_sdk_accepts_the_signature(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    customer = await make(api, "customers", **{"metadata[parley_account_id]": "acct_1"})
    await make(api, "subscriptions", customer=customer["id"], **{"items[0][price]": "price_parley_pro"})
    counters = await all_done(control)
    assert receiver.types == [
        "customer.created",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "entitlements.active_entitlement_summary.updated",
    ]
    events = [receiver.event(index) for index in range(7)]
    assert {event.api_version for event in events} == {"2026-10-28.endive"}
    assert len({event.id for event in events}) == counters["delivered"] == 7
    assert events[0].data.object.metadata.parley_account_id == "acct_1"
    assert events[1].data.object.status == "active"
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.event(0, "whsec_wrong")


async def test_a_refused_event_is_tried_again_until_it_is_taken(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    receiver.answers = [500, 302]
    await make(api, "customers", name="a")
    assert (await all_done(control))["attempts"] == 3
    assert {receiver.event(index).id for index in range(3)} == {receiver.event(0).id}
    attempts = (await control.get("/deliveries")).json()["deliveries"]
    assert [(attempt["attempt"], attempt["status"]) for attempt in attempts] == [(1, 500), (2, 302), (3, 200)]


async def test_an_event_that_is_never_taken_fails_and_is_listed_as_undelivered(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    await control.put("/delivery", json={"attempts_max": 2})
    receiver.answers = [500, 500]
    await make(api, "customers", name="a")
    await all_done(control)
    await make(api, "customers", name="b")
    counters = await all_done(control)
    assert (counters["failed"], counters["delivered"]) == (1, 1)
    missed = (await api.get("/v1/events", params={"delivery_success": "false"})).json()["data"]
    assert [event["data"]["object"]["name"] for event in missed] == ["a"]


async def test_a_dropped_event_never_arrives_but_is_listed(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    await treat(control, {"drop": True}, type="customer.created")
    first = await make(api, "customers", name="a")
    await make(api, "customers", name="b")
    await all_done(control)
    assert receiver.names == ["b"]
    missed = (await api.get("/v1/events", params={"delivery_success": "false"})).json()["data"]
    assert [event["data"]["object"]["id"] for event in missed] == [first["id"]]
    await control.post(f"/events/{missed[0]['id']}/deliver", json={})
    await all_done(control)
    assert receiver.event(1).id == missed[0]["id"]


async def test_a_duplicate_arrives_with_the_same_id(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    await treat(control, {"copies": 3})
    await make(api, "customers", name="a")
    await all_done(control)
    assert len(receiver.got) == 3
    assert len({receiver.event(index).id for index in range(3)}) == 1


async def test_held_events_are_released_in_the_order_asked_for(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    for order, wanted in (("first", "abcd"), ("last", "dcba"), ("shuffled", None)):
        receiver.got.clear()
        await control.put("/delivery", json={"hold": True})
        for name in "abcd":
            await make(api, "customers", name=name)
        assert (await all_done(control))["held"] == 4
        assert receiver.got == []
        body = {"order": order, "seed": 3}
        assert (await control.post("/delivery/release", json=body)).json() == {"released": 4}
        await all_done(control)
        assert sorted(receiver.names) == list("abcd")
        assert wanted is None or receiver.names == list(wanted)


async def test_a_delayed_event_is_overtaken(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    for delay_ms in (200, 2_000, 20_000):
        receiver.got.clear()
        await treat(control, {"delay_ms": delay_ms})
        await make(api, "customers", name="late")
        await make(api, "customers", name="early")
        await all_done(control)
        if receiver.names == ["early", "late"]:  # else the machine was so slow that the second came after the delay
            break
    assert receiver.names == ["early", "late"]


async def test_a_payload_may_contradict_the_api(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    customer = await make(api, "customers", name="a")
    subscription = await make(api, "subscriptions", customer=customer["id"], **{"items[0][price]": "price_parley_pro"})
    await all_done(control)
    receiver.got.clear()
    await treat(control, {"object": {"status": "active"}}, object_id=subscription["id"])
    await api.delete(f"/v1/subscriptions/{subscription['id']}")
    await all_done(control)
    assert receiver.event(0).type == "customer.subscription.deleted"
    assert receiver.event(0).data.object.status == "active"
    assert (await api.get(f"/v1/subscriptions/{subscription['id']}")).json()["status"] == "canceled"


async def test_signatures_can_be_wrong_missing_old_or_several(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    await control.put("/delivery", json={"attempts_max": 1})
    await treat(
        control,
        {"wrong_signature": True},
        {"no_signature": True},
        {"timestamp_offset_seconds": -400},
        {"secrets": ["whsec_next", SECRET]},
    )
    for _ in range(4):
        await make(api, "customers", name="a")
    await all_done(control)
    for index in range(3):
        with pytest.raises(stripe.SignatureVerificationError):
            receiver.event(index)
    header = receiver.got[3][1]
    assert header
    assert header.count("v1=") == 2
    assert receiver.event(3).id == receiver.event(3, "whsec_next").id


async def test_a_body_of_any_kind_can_be_signed(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    await treat(control, {"body": '{"object": "event"}'})
    await make(api, "customers", name="a")
    await all_done(control)
    assert receiver.got[0][0] == b'{"object": "event"}'
    assert receiver.event(0).object == "event"


async def test_events_nobody_makes_can_be_sent_and_their_objects_read(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    dispute = {"id": "dp_1", "object": "dispute", "status": "lost", "charge": "ch_1"}
    await control.post("/events", json={"type": "charge.dispute.closed", "object": dispute})
    await all_done(control)
    assert receiver.types == ["charge.dispute.closed"]
    assert (await api.get("/v1/disputes/dp_1")).json()["status"] == "lost"
    assert (await api.get("/v1/disputes", params={"charge": "ch_1"})).json()["data"][0]["id"] == "dp_1"


async def test_old_payload_shapes_are_delivered_on_demand(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    await control.put("/versions", json={"event_shape": "2025-02-24.acacia"})
    customer = await make(api, "customers", name="a")
    await make(api, "subscriptions", customer=customer["id"], **{"items[0][price]": "price_parley_pro"})
    await all_done(control)
    payload = json.loads(receiver.got[1][0])
    assert payload["api_version"] == "2025-02-24.acacia"
    assert payload["data"]["object"]["current_period_end"] > payload["created"]


async def test_parallel_deliveries_overlap(
    api: httpx.AsyncClient, control: httpx.AsyncClient, receiver: Receiver
) -> None:
    await control.put("/delivery", json={"parallel": 4, "hold": True})
    await asyncio.gather(*(make(api, "customers", name=str(n)) for n in range(20)))
    await control.post("/delivery/release", json={})
    assert (await all_done(control))["delivered"] == 20
    assert len(set(receiver.names)) == 20
