"""Second process: calls the provider for each job."""

import argparse
import json
from typing import Any

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from bench.raw.parts import JOBS, RESULTS, lasting, quorum_queue, run
from shared.http_client import HttpClient, Timeouts

IN_FLIGHT_MAX = 600
ANSWER_BYTES_MAX = 64 * 2**20
_kept: list[Any] = []


class Worker:
    def __init__(self, client: HttpClient, llm_url: str, exchange: AbstractExchange) -> None:
        self._client = client
        self._url = f"{llm_url}/v1/chat/completions"
        self._exchange = exchange

    async def work(self, incoming: AbstractIncomingMessage) -> None:
        job = json.loads(incoming.body)
        result = {"id": job["id"], "output": await self._answer(job["input"])}
        await self._exchange.publish(lasting(json.dumps(result).encode()), routing_key=RESULTS)
        await incoming.ack()

    async def _answer(self, text: str) -> str:
        """The request is, byte for byte, what Parley sends for the same input."""
        body = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": text}],
            "max_completion_tokens": 1024,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        pieces: list[str] = []
        rest = b""
        async with self._client.stream(
            "POST",
            self._url,
            headers={
                "content-type": "application/json",
                "accept": "text/event-stream",
                "authorization": "Bearer sk-stand-in",
            },
            content=json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(),
            timeouts=Timeouts(connect_seconds=5, read_seconds=120),
            body_bytes_max=ANSWER_BYTES_MAX,
        ) as response:
            if response.status != 200:
                raise RuntimeError(f"the provider answered {response.status}")
            async for chunk in response.chunks():
                *lines, rest = (rest + chunk).split(b"\n")
                pieces += [_text_of(line) for line in lines if line.startswith(b"data: {")]
        return "".join(pieces)


def _text_of(line: bytes) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"])


async def serve(arguments: argparse.Namespace) -> None:
    client = HttpClient(connections_max=2 * IN_FLIGHT_MAX)
    await client.start()
    connection = await aio_pika.connect(arguments.amqp_url)
    publishing, consuming = await connection.channel(), await connection.channel()
    await quorum_queue(publishing, RESULTS)
    await consuming.set_qos(prefetch_count=IN_FLIGHT_MAX)
    jobs = await quorum_queue(consuming, JOBS)
    await jobs.consume(Worker(client, arguments.llm_url, publishing.default_exchange).work)
    _kept.extend([connection, publishing, consuming, jobs, client])


if __name__ == "__main__":
    run(serve)
