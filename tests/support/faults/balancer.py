"""What a Kubernetes Service does: new connections go to ready replicas in turn; a change is noticed after a while."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from tests.support.faults.proxy import Proxies

Address = tuple[str, int]

PROBE_SECONDS = 0.25
PROBE_SECONDS_MAX = 1.0
NOTICE_SECONDS = 0.5
"""From a probe that says otherwise until connections go otherwise."""
SILENT_PROBES_MAX = 6
"""As deploy/k8s has it: who is only slow to answer is not taken out, or a busy machine had nobody left to ask."""
_PROBE = b"GET /readyz HTTP/1.1\r\nHost: replica\r\nConnection: close\r\n\r\n"


class Balancer:
    """One address in front of the replicas of a service. Connections that are open stay where they are. Its methods
    may be called from any thread but the proxies' own."""

    def __init__(self, host: Proxies, replicas: Mapping[str, tuple[str, str]]) -> None:
        """`replicas` by name: the URL that is served, and the one that has `/readyz`."""
        self._host = host
        self._addresses = {name: _address(url) for name, (url, _) in replicas.items()}
        self._ops_urls = {name: ops_url for name, (_, ops_url) in replicas.items()}
        self._routed: list[str] = []
        self._changed = threading.Condition()
        self.changes = 0
        self.proxy = host.listen(self._next)
        self._probes = host.run(self._start())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"

    def wait_until_routed(self, names: Collection[str], *, seconds: float = 60) -> None:
        """Return once connections go to these replicas and no others."""
        with self._changed:
            if not self._changed.wait_for(lambda: set(self._routed) == set(names), seconds):
                raise TimeoutError(f"connections go to {self._routed} and not to {sorted(names)} after {seconds:g} s")

    def close(self) -> None:
        self._host.run(self._stop())

    async def _start(self) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self._watch(name)) for name in self._ops_urls]

    async def _stop(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)

    def _next(self) -> Address | None:
        if not self._routed:
            return None
        self._routed.append(self._routed.pop(0))
        return self._addresses[self._routed[-1]]

    async def _watch(self, name: str) -> None:
        was_ready = False
        while True:
            now_ready = await self._probe(name, was_ready)
            if now_ready != was_ready:
                was_ready = now_ready
                await asyncio.sleep(NOTICE_SECONDS)
                self._route(name, now_ready)
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe(self, name: str, was_ready: bool) -> bool:
        """A silent one stays what it was for so many probes."""
        for _ in range(SILENT_PROBES_MAX):
            try:
                return await says_ready(self._ops_urls[name])
            except TimeoutError:
                if not was_ready:
                    break
        return False

    def _route(self, name: str, now_ready: bool) -> None:
        with self._changed:
            self._routed = [*(other for other in self._routed if other != name), *([name] if now_ready else [])]
            self.changes += 1
            self._changed.notify_all()


async def is_ready(ops_url: str) -> bool:
    """What one probe of a kubelet finds; silence is a no."""
    try:
        return await says_ready(ops_url)
    except TimeoutError:
        return False


async def says_ready(ops_url: str) -> bool:
    """Its own word. Whoever refuses the connection is gone; TimeoutError where nothing is said for too long."""
    async with asyncio.timeout(PROBE_SECONDS_MAX):
        try:
            reader, writer = await asyncio.open_connection(*_address(ops_url))
        except ConnectionError:
            return False
        try:
            writer.write(_PROBE)
            return b" 200 " in await reader.readline()
        except ConnectionError:
            return False
        finally:
            writer.close()


def _address(url: str) -> Address:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port
