"""Claims about the proxy: it loses what it says, and nothing else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from replicator.testing.proxy import Proxy


class Echo:
    """A server that answers each line with the same line, and remembers it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.heard: list[bytes] = []
        self.hears = threading.Condition()
        self.thread = threading.Thread(target=self._accept)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            try:
                for line in lines:
                    with self.hears:
                        self.heard.append(line)
                        self.hears.notify_all()
                    connection.sendall(line)
            except OSError:
                return

    def has_heard(self, line: bytes) -> bool:
        with self.hears:
            return self.hears.wait_for(lambda: line in self.heard, timeout=10)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", echo.port) as found:
        yield found


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def asked(connection: socket.socket, line: bytes) -> bytes:
    connection.sendall(line)
    return connection.recv(100)


def ends(connection: socket.socket, line: bytes) -> bool:
    """Whether the connection is over, however it shows that."""
    try:
        return asked(connection, line) == b""
    except ConnectionError:
        return True


def refused(proxy: Proxy) -> bool:
    """Whether a new connection comes to nothing, at once or with the first word."""
    try:
        with connected(proxy) as connection:
            return ends(connection, b"c\n")
    except ConnectionError:
        return True


def test_everything_passes_both_ways(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        assert asked(connection, b"a\n") == b"a\n"
        assert asked(connection, b"b\n") == b"b\n"


def test_a_lost_response_belongs_to_a_request_that_arrived(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as connection:
        assert asked(connection, b"a\n") == b"a\n"
        proxy.lose_responses()
        assert ends(connection, b"b\n")
    assert echo.has_heard(b"b\n")
    proxy.heal()
    with connected(proxy) as connection:
        assert asked(connection, b"c\n") == b"c\n"


def test_a_black_hole_takes_and_says_nothing(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as connection:
        proxy.swallow()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asked(connection, b"a\n")
    assert echo.heard == []


def test_what_is_deaf_still_arrives(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as connection:
        proxy.deafen()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asked(connection, b"a\n")
        assert echo.has_heard(b"a\n")


def test_a_refusing_proxy_resets_old_and_new_connections(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        assert asked(connection, b"a\n") == b"a\n"
        proxy.refuse()
        assert ends(connection, b"b\n")
    assert refused(proxy)
    proxy.heal()
    with connected(proxy) as connection:
        assert asked(connection, b"e\n") == b"e\n"


def test_it_ends_with_all_its_connections_and_threads(echo: Echo) -> None:
    threads = threading.active_count()
    with Proxy("127.0.0.1", echo.port) as proxy, connected(proxy) as connection:
        assert asked(connection, b"a\n") == b"a\n"
    assert threading.active_count() <= threads + 1  # the server's own, perhaps


def test_slow_responses_arrive_complete_and_late(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        proxy.slow(0.1)
        began = time.monotonic()
        assert asked(connection, b"a\n") == b"a\n"
        assert time.monotonic() - began >= 0.2  # there and back


def test_slices_arrive_one_by_one_and_nothing_is_missing(proxy: Proxy) -> None:
    with connected(proxy) as connection:
        proxy.slice(3, 0.01)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"0123456789\n")
        pieces = [connection.recv(100)]
        while not pieces[-1].endswith(b"\n"):
            pieces.append(connection.recv(100))
    assert b"".join(pieces) == b"0123456789\n"
    assert len(pieces) > 1


def test_a_truncated_response_is_its_start_and_then_the_end_of_the_connection(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as connection:
        assert asked(connection, b"first\n") == b"first\n"
        proxy.truncate(4)
        assert asked(connection, b"second\n") == b"seco"
        assert connection.recv(100) == b""
    assert echo.has_heard(b"second\n")
    with connected(proxy) as connection:
        assert asked(connection, b"third\n") == b"thir"


def test_a_half_open_connection_is_silent_and_new_ones_work(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as old:
        assert asked(old, b"a\n") == b"a\n"
        proxy.forget()
        old.settimeout(0.3)
        with pytest.raises(TimeoutError):
            asked(old, b"b\n")
        with connected(proxy) as new:
            assert asked(new, b"c\n") == b"c\n"
        proxy.heal()
        assert ends(old, b"d\n")
    assert echo.heard == [b"a\n", b"c\n"]


def test_a_slow_close_is_heard_of_late_and_what_is_said_meanwhile_is_lost(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as connection:
        assert asked(connection, b"a\n") == b"a\n"
        began = time.monotonic()
        proxy.close_slowly(0.3)
        assert ends(connection, b"b\n")
        assert time.monotonic() - began >= 0.3
    assert echo.heard == [b"a\n"]


def test_connections_are_counted(proxy: Proxy) -> None:
    for n in range(3):
        with connected(proxy) as connection:
            assert asked(connection, b"a\n") == b"a\n"
        assert proxy.connections == n + 1


def test_a_request_that_is_held_arrives_after_others_and_after_its_client_is_gone(echo: Echo, proxy: Proxy) -> None:
    proxy.hold(b"late")
    with socket.create_connection(("127.0.0.1", proxy.port)) as frozen:
        frozen.sendall(b"too late\n")
        deadline = time.monotonic() + 10
        while not proxy.holding:
            assert time.monotonic() < deadline
        with socket.create_connection(("127.0.0.1", proxy.port)) as other, other.makefile("rb") as lines:
            other.sendall(b"not late\n")
            assert lines.readline() == b"not late\n"
    assert echo.heard == [b"not late\n"]
    proxy.release()
    assert echo.has_heard(b"too late\n")
