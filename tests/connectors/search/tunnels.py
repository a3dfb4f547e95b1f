"""A forward proxy that opens tunnels (CONNECT), as squid does."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Tunnels:
    """``asked``: each CONNECT with its login. ``login``: the header that it requires. ``refusal``: the status of its
    response to every CONNECT. ``hosts``: names that only the proxy can resolve.
    """

    port: int = 0
    login: str | None = None
    refusal: int | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def refused(self, login: str | None) -> int | None:
        return 407 if login != self.login else self.refusal


@contextmanager
def tunnels(found: Tunnels | None = None) -> Iterator[Tunnels]:
    proxy = found or Tunnels()

    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True  # else the body waits 40 ms for the acknowledgment of the headers

        def do_CONNECT(self) -> None:
            login = self.headers.get("proxy-authorization")
            proxy.asked.append((self.path, login))
            if (status := proxy.refused(login)) is not None:
                self.send_error(status)
                return
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((proxy.hosts.get(host, host), int(port))) as server:
                self.send_response_only(200, "Connection established")
                self.end_headers()
                _relay(self.connection, server)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    proxy.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield proxy
    http.shutdown()
    http.socket.close()  # tunnels end when their clients hang up
    thread.join(10)


def _relay(client: socket.socket, server: socket.socket) -> None:
    other = {client: server, server: client}
    with contextlib.suppress(OSError):
        while True:
            for ready in select.select([client, server], [], [])[0]:
                if not (piece := ready.recv(1 << 16)):
                    return
                other[ready].sendall(piece)
