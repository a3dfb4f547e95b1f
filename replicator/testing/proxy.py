"""A TCP proxy between a client and a server, which loses what passes through it as networks do.

with Proxy("127.0.0.1", 5432) as proxy:
    connect(proxy.port)
    proxy.lose_answers()  # requests arrive and are carried out; nobody hears of it, and the connection ends
    proxy.heal()
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from enum import Enum
from types import TracebackType

_PIECE = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what was not sent yet is thrown away


class Fault(Enum):
    """What the network does at present."""

    NONE = "passes everything on"
    REFUSING = "ends every new connection, and those there are"
    LOSING_ANSWERS = "passes requests on, and ends the connection instead of answering"
    BLACK_HOLE = "takes everything, passes nothing on, says nothing"
    DEAF = "passes requests on, and never an answer"


class Proxy:
    """Listens on a free port of this machine (``port``) and passes bytes on to ``host``:``port``, both ways."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._fault = Fault.NONE
        self._delay = 0.0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Proxy:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    # What the network does

    def heal(self) -> None:
        """Pass everything on again, at once. Connections that saw a fault are gone."""
        self._become(Fault.NONE)
        self._delay = 0.0

    def slow(self, seconds: float) -> None:
        """Hold every piece back so long, in each direction."""
        self._delay = seconds

    def refuse(self) -> None:
        self._become(Fault.REFUSING)

    def lose_answers(self) -> None:
        self._fault = Fault.LOSING_ANSWERS  # connections stay: what is asked on them is carried out

    def swallow(self) -> None:
        self._fault = Fault.BLACK_HOLE

    def deafen(self) -> None:
        self._fault = Fault.DEAF

    def cut(self) -> None:
        """End every connection there is."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            _end(connection)

    # How

    def _become(self, fault: Fault) -> None:
        self._fault = fault
        self.cut()

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
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._fault is Fault.REFUSING:
                raise ConnectionRefusedError
            server = socket.create_connection(self._to, timeout=10)
        except OSError:
            _end(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open |= {client, server}
        self._start(self._pass, client, server, False)
        self._start(self._pass, server, client, True)

    def _pass(self, source: socket.socket, to: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                time.sleep(self._delay)
                if self._fault is Fault.BLACK_HOLE or (answers and self._fault is Fault.DEAF):
                    continue
                if answers and self._fault is Fault.LOSING_ANSWERS:
                    break
                to.sendall(piece)
        with self._lock:
            self._open -= {source, to}
        _end(source)
        _end(to)


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
