"""A TCP proxy between a client and a server that injects network faults.

with Proxy("127.0.0.1", 5432) as proxy:
    connect(proxy.port)
    proxy.lose_responses()  # requests are delivered and applied, but the connection ends without a response
    proxy.heal()
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass
from enum import Enum
from types import TracebackType

_PIECE = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: discard unsent data and send a reset


class Fault(Enum):
    """What the network currently does."""

    NONE = "forwards everything"
    REFUSING = "resets new and existing connections"
    LOSING_ANSWERS = "forwards requests, and closes the connection instead of responding"
    BLACK_HOLE = "accepts everything, forwards nothing"
    DEAF = "forwards requests, but no responses"


@dataclass(frozen=True, slots=True)
class Weather:
    """A fault, and how bytes are forwarded: in pieces of at most ``piece`` bytes, each delayed by ``delay`` seconds.

    ``answer``: response bytes after which a connection ends. ``closing``: seconds until clients learn that the server
    has closed the connection; None: never.
    """

    fault: Fault = Fault.NONE
    delay: float = 0.0
    piece: int = _PIECE
    answer: int | None = None
    closing: float | None = None


class _Link:
    """A client's connection and the corresponding one to the server.

    Two threads use it; the last one closes the sockets. Otherwise a file descriptor could be closed and reused for
    another connection before a thread reads from it.
    """

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.answered = 0  # bytes
        self.forgotten = threading.Event()
        self._users = 2
        self._lock = threading.Lock()

    def end(self) -> None:
        with self._lock:  # not while they are being closed
            if self._users:
                _break(self.client)
                _break(self.server)

    def forget(self) -> None:
        """Close the server's side without closing the client's."""
        self.forgotten.set()
        with self._lock:
            if self._users:
                _break(self.server)

    def left(self) -> None:
        """One of its threads is done with it."""
        with self._lock:
            self._users -= 1
            if not self._users:
                self.client.close()
                self.server.close()


class Proxy:
    """Listens on ``listen`` (loopback and a free port by default) and forwards bytes to and from ``host``:``port``.

    ``port``: where it listens. ``connections``: how many clients have connected. ``holding``: whether it holds a
    request.
    """

    def __init__(self, host: str, port: int, listen: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self._to = (host, port)
        self._weather = Weather()
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._listener = socket.create_server(listen)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.holding = False
        self._text = b""
        self._released = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._released.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    # Faults

    def heal(self) -> None:
        """Forward everything again, immediately. Connections that saw a fault are closed."""
        self._become(Weather())

    def slow(self, seconds: float) -> None:
        """Delay every piece by ``seconds``, in each direction."""
        self._weather = Weather(delay=seconds)

    def slice(self, piece: int, seconds: float = 0.0) -> None:
        """Forward in pieces of ``piece`` bytes and pause after each: ``piece / seconds`` bytes per second."""
        self._weather = Weather(piece=piece, delay=seconds)

    def refuse(self) -> None:
        """Reset existing and new connections."""
        self._become(Weather(Fault.REFUSING))

    def truncate(self, answer: int) -> None:
        """Close each connection gracefully after ``answer`` bytes of responses."""
        for link in self._links_now():
            link.answered = 0
        self._weather = Weather(answer=answer)

    def lose_responses(self) -> None:
        self._weather = Weather(Fault.LOSING_ANSWERS)  # connections stay open, so their requests are applied

    def swallow(self) -> None:
        self._weather = Weather(Fault.BLACK_HOLE)

    def deafen(self) -> None:
        self._weather = Weather(Fault.DEAF)

    def forget(self) -> None:
        """Leave clients with half-open connections: the server's side is closed silently. New connections work."""
        self._weather = Weather()
        self._forget()

    def close_slowly(self, seconds: float) -> None:
        """Close the server's side, and the client's ``seconds`` later; what clients send meanwhile is lost."""
        self._weather = Weather(closing=seconds)
        self._forget()

    def hold(self, text: bytes) -> None:
        """Hold the next request with ``text`` until ``release``; it arrives then even if its client is gone.

        Others are forwarded. Its beginning may arrive before, if the client sends it in pieces.
        """
        self._released.clear()
        self._text = text

    def release(self) -> None:
        self._text = b""
        self._released.set()

    def cut(self) -> None:
        """Close all connections."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.end()

    # How

    def _forget(self) -> None:
        for link in self._links_now():
            link.forget()

    def _become(self, weather: Weather) -> None:
        self._weather = weather
        self.cut()

    def _links_now(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def _start(self, work: object, *given: object) -> None:
        thread = threading.Thread(target=work, args=given, daemon=True)  # type: ignore[arg-type]
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._weather.fault is Fault.REFUSING:
                raise ConnectionRefusedError
            server = socket.create_connection(self._to, timeout=10)
        except OSError:
            _end(client)
            return
        server.settimeout(None)
        link = _Link(client, server)
        with self._lock:
            self._links.add(link)
        self._start(self._requests, link)
        self._start(self._answers, link)

    def _requests(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while piece := link.client.recv(_PIECE):
                if self._weather.fault is Fault.BLACK_HOLE or link.forgotten.is_set():
                    continue
                held = self._held(piece)
                self._send(link.server, piece)
                self.holding = self.holding and not held
        self._over(link)
        link.left()

    def _held(self, piece: bytes) -> bool:
        """Whether it was the piece to hold, which no other one is then, after waiting for ``release``."""
        with self._lock:
            if not self._text or self._text not in piece:
                return False
            self._text, self.holding = b"", True
        return self._released.wait()

    def _answers(self, link: _Link) -> None:
        self._answer(link)
        if not link.forgotten.is_set():
            self._over(link)
        elif self._weather.closing is not None:  # else the client is never told
            self._closed.wait(self._weather.closing)
            self._over(link)
        link.left()

    def _answer(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while piece := link.server.recv(_PIECE):
                weather = self._weather
                if weather.fault in (Fault.BLACK_HOLE, Fault.DEAF):
                    continue
                if weather.fault is Fault.LOSING_ANSWERS:
                    break
                kept = piece if weather.answer is None else piece[: max(0, weather.answer - link.answered)]
                link.answered += len(kept)
                self._send(link.client, kept)
                if len(kept) < len(piece):
                    link.client.shutdown(socket.SHUT_WR)  # so that what was sent arrives
                    break

    def _send(self, to: socket.socket, piece: bytes) -> None:
        weather = self._weather
        for start in range(0, len(piece), weather.piece):
            time.sleep(weather.delay)
            to.sendall(piece[start : start + weather.piece])

    def _over(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)
        link.end()


def _end(connection: socket.socket) -> None:
    _break(connection)
    connection.close()


def _break(connection: socket.socket) -> None:
    """Wake the thread that waits for it; closing it resets the other side."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)
