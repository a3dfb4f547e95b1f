"""Non-blocking HTTP/1.1 client for AWS: pooled keep-alive connections, many requests in flight, no thread per request.

boto3 provides the endpoints and credentials. The rest of what it does for a call would cost more than all processing of
the response. Only opening a connection (DNS, TCP, proxy, TLS) uses a thread, for as long as that takes.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import orjson

from replicator.aws.client import Call
from replicator.aws.endpoint import Endpoint, connected
from replicator.aws.errors import AwsError, NotConnected
from replicator.aws.http_connection import ConnectionPool, HttpConnection
from replicator.aws.sigv4 import Keys, Signer
from replicator.errors import ReplicatorError
from replicator.response_limits import WHOLE

CONTENT = "application/x-amz-json-1.0"
_STALE = 20.0  # seconds after which an idle connection is not reused
_FRESH = 0.05  # seconds within which one is reused without checking it for a close or unsolicited bytes
WAITED = 30.0  # seconds that a request may wait for a connection; after more, the process was suspended: do not send
_POLL = 1.0  # seconds at most between two checks for timeouts


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Where an operation's calls go. ``target``: X-Amz-Target; ``service``: the name requests are signed for."""

    endpoint: Endpoint
    target: str
    service: str


class HttpClient:
    """``Calls`` over HTTP.

    ``timeout``: seconds without a byte of the response. Opening a connection may take as long per step, but at most 5
    seconds; a complete response may take ``WHOLE`` times as long.

    Nothing is retried: a lost or missing response is an AwsError with status 0.
    """

    def __init__(self, route: Callable[[Call], Route], keys: Callable[[], Keys], timeout: float) -> None:
        self._route, self._keys = route, keys
        self._timeout = timeout
        self._pools: dict[Endpoint, ConnectionPool] = {}
        self._routed: dict[Route, tuple[ConnectionPool, Signer]] = {}
        self._busy: set[HttpConnection] = set()
        self._responses: deque[tuple[object, bytes | Exception]] = deque()
        self._ready: deque[HttpConnection | None] = deque()
        self._opened: SimpleQueue[tuple[ConnectionPool, socket.socket | AwsError]] = SimpleQueue()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)

    def begin(self, name: object, call: Call) -> None:
        try:
            pool, message = self.message(call)
        except (AwsError, ReplicatorError) as e:
            self._responses.append((name, e))
            return
        connection = self._acquire(pool)
        if connection is not None:
            self._send(connection, name, message)
            return
        pool.waiting.append((name, message, time.time()))
        if pool.opening < len(pool.waiting):
            pool.opening += 1
            threading.Thread(target=self._open, args=(pool,), daemon=True, name="connecting").start()

    def message(self, call: Call) -> tuple[ConnectionPool, bytes]:
        """The signed request, and the pool that it is sent through."""
        route = self._route(call)
        pool, signer = self._routed.get(route) or self._add_route(route)
        body = orjson.dumps(call.request) if call.body is None else call.body
        head = signer.headers(route.target, body, self._keys(), time.time())
        return pool, b"".join((pool.start, head, b"content-length: %d\r\n\r\n" % len(body), body))

    def next(self, timeout: float) -> tuple[object, bytes | Exception] | None:
        if not self._responses:
            self._poll(min(timeout, _POLL))
        return self._responses.popleft() if self._responses else None

    def close(self) -> None:
        self._closed = True
        for connection in [*self._busy, *(idle for pool in self._pools.values() for idle in pool.idle)]:
            connection.close()
        self._busy.clear()
        self._pools.clear()
        self._drop_opened()
        self._selector.close()
        self._woken.close()
        self._wake.close()

    def _poll(self, timeout: float) -> None:
        """Read from connections one by one until a response is complete."""
        if not self._ready:
            self._ready.extend(key.data for key, _ in self._selector.select(timeout))
            self._time_out(time.monotonic())
        while self._ready and not self._responses:
            connection = self._ready.popleft()
            if connection is None:
                self._take_opened()
            elif connection.socket.fileno() >= 0:  # not closed since it was selected
                self._progress(connection)

    def _progress(self, connection: HttpConnection) -> None:
        try:
            if connection.unsent:
                connection.push(time.monotonic())
                self._watch(connection)
            complete = connection.pull(time.monotonic())
        except OSError as e:
            self._discard(connection, _closed(connection.pool.endpoint, e))
            return
        if complete:
            self._respond(connection)

    def _respond(self, connection: HttpConnection) -> None:
        reusable = connection.reusable
        self._responses.append((connection.name, connection.response()))
        connection.name = None
        if reusable:
            self._busy.discard(connection)
            self._release(connection)
        else:
            self._discard(connection, None)

    def _discard(self, connection: HttpConnection, error: Exception | None) -> None:
        """Close a connection; ``error`` goes to the request in flight on it."""
        self._busy.discard(connection)
        if connection in connection.pool.idle:
            connection.pool.idle.remove(connection)
        self._selector.unregister(connection.socket)
        connection.close()
        if connection.name is not None and error is not None:
            self._responses.append((connection.name, error))

    def _time_out(self, now: float) -> None:
        """Fail requests that took too long; what had arrived was read before. No more of them is sent."""
        stalled, overdue = now - self._timeout, now - WHOLE * self._timeout
        for connection in [c for c in self._busy if c.since < stalled or c.begun < overdue]:
            if connection in self._ready and connection.begun >= overdue and not connection.unsent:
                continue
            reason = f"no response within {self._timeout:g} s (timeout)"
            if connection.since >= stalled:
                reason = f"no complete response within {WHOLE * self._timeout:g} s ({WHOLE} times timeout)"
            message = f'Read timeout on endpoint URL: "{connection.pool.endpoint.shown}": {reason}'
            self._discard(connection, AwsError("ReadTimeoutError", message, 0))

    # Requests

    def _add_route(self, route: Route) -> tuple[ConnectionPool, Signer]:
        endpoint = route.endpoint
        pool = self._pools.setdefault(endpoint, ConnectionPool(endpoint))
        signer = Signer(endpoint.host, endpoint.region, route.service, CONTENT, endpoint.place)
        self._routed[route] = pool, signer
        return pool, signer

    def _acquire(self, pool: ConnectionPool) -> HttpConnection | None:
        """An idle connection that is still usable; None if there is none."""
        while pool.idle:
            connection = pool.idle.pop()
            now = time.monotonic()
            fresh = now - connection.since <= _FRESH and connection not in self._ready
            if now - connection.since <= _STALE and (fresh or connection.usable(now)):
                return connection
            self._discard(connection, None)
        return None

    def _send(self, connection: HttpConnection, name: object, message: bytes) -> None:
        self._busy.add(connection)
        try:
            connection.send(name, message, time.monotonic())
        except OSError as e:
            self._discard(connection, _closed(connection.pool.endpoint, e))
            return
        if connection.unsent:
            self._watch(connection)

    def _watch(self, connection: HttpConnection) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        self._selector.modify(connection.socket, events, connection)

    def _release(self, connection: HttpConnection) -> None:
        """Give a connection to the next waiting request, or make it idle."""
        waiting = connection.pool.waiting
        while waiting:
            name, message, since = waiting.popleft()
            if 0 <= time.time() - since <= WAITED:
                self._send(connection, name, message)
                return
            reason = f'Connect timeout on endpoint URL: "{connection.pool.endpoint.shown}"'
            self._responses.append((name, NotConnected("ConnectTimeoutError", reason, 0)))
        connection.pool.idle.append(connection)

    # Connections

    def _open(self, pool: ConnectionPool) -> None:
        """Open a connection; runs on its own thread."""
        try:
            result: socket.socket | AwsError = connected(pool.endpoint, min(5.0, self._timeout))
        except AwsError as e:
            result = e
        self._opened.put((pool, result))
        with contextlib.suppress(OSError):  # the client was closed
            self._wake.send(b".")
        if self._closed:
            self._drop_opened()

    def _take_opened(self) -> None:
        self._woken.recv(1)
        pool, result = self._opened.get()
        pool.opening -= 1
        if isinstance(result, AwsError):
            if pool.waiting:
                name, *_ = pool.waiting.popleft()
                self._responses.append((name, result))
            return
        connection = HttpConnection(result, pool)
        connection.since = time.monotonic()
        self._selector.register(result, selectors.EVENT_READ, connection)
        self._release(connection)

    def _drop_opened(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                _, result = self._opened.get_nowait()
                if not isinstance(result, AwsError):
                    result.close()


def _closed(endpoint: Endpoint, error: OSError) -> AwsError:
    reason = "Connection was closed before we received a valid response from endpoint URL"
    message = f'{reason}: "{endpoint.shown}" ({error})'
    closed = AwsError("ConnectionClosedError", message, 0)
    closed.__cause__ = error
    return closed
