"""Carries out the steps of a reply on the connection, down to the TCP reset."""

import asyncio
import time

from aiohttp import web

from deploy.local.standins.gates import Gates
from deploy.local.standins.llm.call import Call
from deploy.local.standins.llm.plan import Break, Pause, Send, Stall, Step
from deploy.local.standins.resetting import reset

_GARBAGE = b"ZZ\r\nthis is not a chunk\r\n"
# A reset makes the peer's kernel refuse what is still on its way: let it read first.
_BEFORE_RESET_SECONDS = 0.02
_FLUSH_TRIES_MAX = 50


async def send(
    request: web.Request, call: Call, steps: list[Step], headers: dict[str, str], gates: Gates[Call]
) -> web.StreamResponse:
    """Send the reply; steps without a pause go out as one write with the headers."""
    call.status = 200
    if len(steps) == 1 and isinstance(steps[0], Send):
        call.first_byte_at = time.monotonic()
        call.frames_sent = steps[0].frames
        whole = web.Response(body=steps[0].data, headers=headers)
        if headers["Content-Type"].startswith("text/event-stream"):
            whole.enable_chunked_encoding()
        return whole
    response = web.StreamResponse(headers=headers)
    response.enable_chunked_encoding()
    await response.prepare(request)
    call.first_byte_at = time.monotonic()
    for step in steps:
        await _carry_out(request, response, call, step, gates)
    await response.write_eof()
    return response


async def _carry_out(
    request: web.Request, response: web.StreamResponse, call: Call, step: Step, gates: Gates[Call]
) -> None:
    match step:
        case Send(data, frames):
            await response.write(data)
            call.frames_sent += frames
        case Pause(seconds):
            await asyncio.sleep(seconds)
        case Stall(gate, seconds):
            await gates.stall(call, gate, seconds)
        case Break(how):
            call.outcome = "broken"
            await break_connection(request, how)


async def break_connection(request: web.Request, how: str) -> None:
    """End the connection as told; does not return, since aiohttp cancels the handler of a lost connection."""
    transport = request.transport
    if transport is not None:
        await _flush(transport)
        if how == "reset":
            await asyncio.sleep(_BEFORE_RESET_SECONDS)
            reset(transport)
        else:
            if how == "garbage":
                transport.write(_GARBAGE)
            transport.close()
    await asyncio.Event().wait()


async def _flush(transport: asyncio.Transport) -> None:
    for _ in range(_FLUSH_TRIES_MAX):
        if transport.get_write_buffer_size() == 0:
            return
        await asyncio.sleep(_BEFORE_RESET_SECONDS)
