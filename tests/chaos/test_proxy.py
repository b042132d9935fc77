"""Every fault of the proxy, against a server that echoes: what passes, what does not, and what each side sees."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.faults.proxy import Proxies, Proxy, Shape

SILENCE_SECONDS = 0.3
PATIENCE_SECONDS = 5.0


class Echo:
    """Sends back what it gets; keeps the sockets it accepted."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self.ends: list[str] = []
        self._ended = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # or the accept that waits would keep the port
        self._listener.close()

    @property
    def listens(self) -> bool:
        return self._listener.fileno() >= 0

    def wait_for_ends(self, count: int) -> list[str]:
        """How connections ended, once so many have: `closed` in order, or `reset`."""
        with self._ended:
            assert self._ended.wait_for(lambda: len(self.ends) >= count, PATIENCE_SECONDS)
            return list(self.ends)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        end = "closed"
        with closing(connection):
            try:
                while chunk := connection.recv(65536):
                    connection.sendall(chunk)
            except ConnectionError:
                end = "reset"
        with self._ended:
            self.ends.append(end)
            self._ended.notify_all()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    if server.listens:
        server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    proxies = Proxies()
    yield proxies.listen(echo.address)
    proxies.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_SECONDS)


def echoed(client: socket.socket, sent: bytes) -> bytes:
    """What came back of `sent`; the client sends from a thread, so that big texts do not block both ways."""
    sender = threading.Thread(target=client.sendall, args=(sent,))
    sender.start()
    back = b""
    while len(back) < len(sent) and (chunk := client.recv(65536)):
        back += chunk
    sender.join()
    return back


def hears_nothing(client: socket.socket) -> bool:
    client.settimeout(SILENCE_SECONDS)
    try:
        heard = client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE_SECONDS)
    raise AssertionError(f"the client heard {heard!r}")


def test_bytes_pass_unchanged_and_are_counted(proxy: Proxy) -> None:
    text = bytes(range(256)) * 4000
    with connect(proxy) as client:
        assert echoed(client, text) == text
        counts = proxy.counts
    assert (counts.accepted, counts.open, counts.refused) == (1, 1, 0)
    assert (counts.bytes_up, counts.bytes_down) == (len(text), len(text))


def test_an_orderly_end_passes_each_way_by_itself(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b"last words"
        assert client.recv(100) == b""
    assert echo.wait_for_ends(1) == ["closed"]
    proxy.wait_for(lambda counts: counts.open == 0)


def test_a_reset_passes_as_a_reset(proxy: Proxy, echo: Echo) -> None:
    client = connect(proxy)
    assert echoed(client, b"x") == b"x"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert echo.wait_for_ends(1) == ["reset"]


def test_refuse_turns_new_connections_away_and_leaves_open_ones_alone(proxy: Proxy) -> None:
    with connect(proxy) as before:
        assert echoed(before, b"a") == b"a"
        proxy.set_mode("refuse")
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        assert echoed(before, b"b") == b"b"
        proxy.set_mode("pass")
        with connect(proxy) as after:
            assert echoed(after, b"c") == b"c"


def test_cut_resets_both_sides_of_every_connection_and_takes_new_ones(proxy: Proxy, echo: Echo) -> None:
    clients = [connect(proxy) for _ in range(3)]
    for client in clients:
        assert echoed(client, b"x") == b"x"
    assert proxy.cut() == 3
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()
    assert echo.wait_for_ends(3) == ["reset"] * 3
    with connect(proxy) as client:
        assert echoed(client, b"y") == b"y"


def test_freeze_stops_both_directions_and_loses_nothing(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as old:
        assert echoed(old, b"x") == b"x"
        proxy.set_mode("freeze")
        old.sendall(b"held")
        with connect(proxy) as new:
            new.sendall(b"new")
            assert hears_nothing(old)
            assert hears_nothing(new)
            assert proxy.counts.bytes_up == 1
            assert echo.ends == []
            proxy.set_mode("pass")
            assert old.recv(4) == b"held"
            assert new.recv(3) == b"new"


def test_freeze_holds_back_ends_too(proxy: Proxy, echo: Echo) -> None:
    client = connect(proxy)
    assert echoed(client, b"x") == b"x"
    proxy.set_mode("freeze")
    client.close()
    threading.Event().wait(SILENCE_SECONDS)
    assert echo.ends == []
    proxy.set_mode("pass")
    assert len(echo.wait_for_ends(1)) == 1


def test_half_open_ends_the_upstream_and_leaves_the_client_in_silence(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as client:
        assert echoed(client, b"x") == b"x"
        assert proxy.half_open() == 1
        assert echo.wait_for_ends(1) == ["reset"]
        client.sendall(b"is anybody there")
        assert hears_nothing(client)
        with connect(proxy) as new:
            assert echoed(new, b"y") == b"y"
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_client_that_leaves_a_half_open_connection_frees_it(proxy: Proxy) -> None:
    with connect(proxy) as client:
        assert echoed(client, b"x") == b"x"
        proxy.half_open()
    proxy.wait_for(lambda counts: counts.open == 0)


def test_latency_delays_each_way(proxy: Proxy) -> None:
    proxy.set_shape(Shape(latency_seconds=0.2))
    with connect(proxy) as client:
        began = time.monotonic()
        assert echoed(client, b"x") == b"x"
        assert time.monotonic() - began >= 0.4


def test_bandwidth_is_a_ceiling(proxy: Proxy) -> None:
    proxy.set_shape(Shape(bytes_per_second=1_000_000))
    with connect(proxy) as client:
        began = time.monotonic()
        text = b"x" * 300_000
        assert echoed(client, text) == text
        assert time.monotonic() - began >= 0.3


def test_a_connection_is_reset_after_exactly_so_many_bytes(proxy: Proxy) -> None:
    proxy.set_shape(Shape(reset_after_bytes=1000))
    with connect(proxy) as client:
        assert echoed(client, b"x" * 300) == b"x" * 300
        client.sendall(b"y" * 4000)
        with pytest.raises(ConnectionResetError):
            while client.recv(65536):
                continue
    counts = proxy.counts
    assert counts.bytes_up + counts.bytes_down == 1000
    proxy.set_shape(Shape())
    with connect(proxy) as client:
        assert echoed(client, b"z" * 5000) == b"z" * 5000


def test_an_upstream_that_is_away_resets_the_client(proxy: Proxy, echo: Echo) -> None:
    echo.close()
    # The reset may be there before connect() has returned.
    with pytest.raises(ConnectionResetError), connect(proxy) as client:
        client.sendall(b"x")
        client.recv(1)
    proxy.wait_for(lambda counts: counts.open == 0)
    assert proxy.counts.refused == 1


def test_a_caller_that_blocks_does_not_stall_the_proxy(proxy: Proxy) -> None:
    """The echo comes back while this thread does nothing but wait in a system call."""
    with connect(proxy) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
