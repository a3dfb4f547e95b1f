"""Calls to AWS on connections of our own, many under way at once, and no thread that waits for any of them.

boto3 says where a call goes and with which keys; the rest of what it does for a call takes more time than all else
that becomes of the answer. Only making a connection (names, TCP, proxy, TLS) takes a thread, for as long as that takes.
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
_STALE = 20.0  # seconds after which an idle connection is not trusted any more
_LOOKED = 0.05  # seconds for which it is without a look at what came on it
WAITED = 30.0  # seconds; what waits longer for a connection is not sent any more: the process was stopped meanwhile
_LOOK = 1.0  # seconds between two looks at what waits too long, at most


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Where calls of an operation go. ``target``: its X-Amz-Target; ``service``: what requests are signed for."""

    endpoint: Endpoint
    target: str
    service: str


class HttpClient:
    """``Calls`` over HTTP.

    ``timeout``: seconds without a byte of an answer, at most 5 of them for a connection, and five times as many for a
    whole answer.

    Nothing is repeated: an answer that got lost, or did not come, is a WireError with the status 0.
    """

    def __init__(self, route: Callable[[Call], Route], keys: Callable[[], Keys], timeout: float) -> None:
        self._route, self._keys = route, keys
        self._timeout = timeout
        self._pools: dict[Endpoint, ConnectionPool] = {}
        self._ways: dict[Route, tuple[ConnectionPool, Signer]] = {}
        self._busy: set[HttpConnection] = set()
        self._answers: deque[tuple[object, bytes | Exception]] = deque()
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
            self._answers.append((name, e))
            return
        line = self._free(pool)
        if line is not None:
            self._send(line, name, message)
            return
        pool.waiting.append((name, message, time.time()))
        if pool.opening < len(pool.waiting):
            pool.opening += 1
            threading.Thread(target=self._open, args=(pool,), daemon=True, name="connecting").start()

    def message(self, call: Call) -> tuple[ConnectionPool, bytes]:
        """The whole request, signed, and the connections that it may go out on."""
        route = self._route(call)
        pool, signer = self._ways.get(route) or self._way(route)
        body = orjson.dumps(call.request) if call.body is None else call.body
        head = signer.headers(route.target, body, self._keys(), time.time())
        return pool, b"".join((pool.start, head, b"content-length: %d\r\n\r\n" % len(body), body))

    def next(self, timeout: float) -> tuple[object, bytes | Exception] | None:
        if not self._answers:
            self._look(min(timeout, _LOOK))
        return self._answers.popleft() if self._answers else None

    def close(self) -> None:
        self._closed = True
        for line in [*self._busy, *(line for pool in self._pools.values() for line in pool.idle)]:
            line.close()
        self._busy.clear()
        self._pools.clear()
        self._drop_opened()
        self._selector.close()
        self._woken.close()
        self._wake.close()

    def _look(self, timeout: float) -> None:
        """Take in what came, of one connection after the other, until an answer is whole."""
        if not self._ready:
            self._ready.extend(key.data for key, _ in self._selector.select(timeout))
            self._give_up(time.monotonic())
        while self._ready and not self._answers:
            line = self._ready.popleft()
            if line is None:
                self._take_opened()
            elif line.socket.fileno() >= 0:  # not ended meanwhile
                self._move(line)

    def _move(self, line: HttpConnection) -> None:
        try:
            if line.unsent:
                line.push(time.monotonic())
                self._watch(line)
            whole = line.pull(time.monotonic())
        except OSError as e:
            self._end(line, _closed(line.pool.endpoint, e))
            return
        if whole:
            self._answered(line)

    def _answered(self, line: HttpConnection) -> None:
        lasting = line.lasting
        self._answers.append((line.name, line.answer()))
        line.name = None
        if lasting:
            self._busy.discard(line)
            self._rest(line)
        else:
            self._end(line, None)

    def _end(self, line: HttpConnection, error: Exception | None) -> None:
        """A connection is over; ``error`` is for the request that was under way on it."""
        self._busy.discard(line)
        if line in line.pool.idle:
            line.pool.idle.remove(line)
        self._selector.unregister(line.socket)
        line.close()
        if line.name is not None and error is not None:
            self._answers.append((line.name, error))

    def _give_up(self, now: float) -> None:
        """What waits too long, though what came of it was just taken in; no more of it is sent."""
        quiet, endless = now - self._timeout, now - WHOLE * self._timeout
        for line in [line for line in self._busy if line.since < quiet or line.begun < endless]:
            if line in self._ready and line.begun >= endless and not line.unsent:
                continue
            waited = f"no response within {self._timeout:g} s (timeout)"
            if line.since >= quiet:
                waited = f"no complete response within {WHOLE * self._timeout:g} s ({WHOLE} times timeout)"
            said = f'Read timeout on endpoint URL: "{line.pool.endpoint.shown}": {waited}'
            self._end(line, AwsError("ReadTimeoutError", said, 0))

    # Requests

    def _way(self, route: Route) -> tuple[ConnectionPool, Signer]:
        endpoint = route.endpoint
        pool = self._pools.setdefault(endpoint, ConnectionPool(endpoint))
        found = self._ways[route] = pool, Signer(endpoint.host, endpoint.region, route.service, CONTENT, endpoint.place)
        return found

    def _free(self, pool: ConnectionPool) -> HttpConnection | None:
        """An idle connection that may still be good."""
        while pool.idle:
            line = pool.idle.pop()
            now = time.monotonic()
            looked = now - line.since <= _LOOKED and line not in self._ready
            if now - line.since <= _STALE and (looked or line.usable(now)):
                return line
            self._end(line, None)
        return None

    def _send(self, line: HttpConnection, name: object, message: bytes) -> None:
        self._busy.add(line)
        try:
            line.send(name, message, time.monotonic())
        except OSError as e:
            self._end(line, _closed(line.pool.endpoint, e))
            return
        if line.unsent:
            self._watch(line)

    def _watch(self, line: HttpConnection) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.unsent else 0)
        self._selector.modify(line.socket, events, line)

    def _rest(self, line: HttpConnection) -> None:
        """The connection has nothing to do: it takes what waits for one."""
        waiting = line.pool.waiting
        while waiting:
            name, message, since = waiting.popleft()
            if 0 <= time.time() - since <= WAITED:
                self._send(line, name, message)
                return
            said = f'Connect timeout on endpoint URL: "{line.pool.endpoint.shown}"'
            self._answers.append((name, NotConnected("ConnectTimeoutError", said, 0)))
        line.pool.idle.append(line)

    # Connections

    def _open(self, pool: ConnectionPool) -> None:
        """In a thread of its own."""
        try:
            found: socket.socket | AwsError = connected(pool.endpoint, min(5.0, self._timeout))
        except AwsError as e:
            found = e
        self._opened.put((pool, found))
        with contextlib.suppress(OSError):  # closed meanwhile
            self._wake.send(b".")
        if self._closed:
            self._drop_opened()

    def _take_opened(self) -> None:
        self._woken.recv(1)
        pool, found = self._opened.get()
        pool.opening -= 1
        if isinstance(found, AwsError):
            if pool.waiting:
                name, *_ = pool.waiting.popleft()
                self._answers.append((name, found))
            return
        line = HttpConnection(found, pool)
        line.since = time.monotonic()
        self._selector.register(found, selectors.EVENT_READ, line)
        self._rest(line)

    def _drop_opened(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                _, found = self._opened.get_nowait()
                if not isinstance(found, AwsError):
                    found.close()


def _closed(endpoint: Endpoint, error: OSError) -> AwsError:
    said = f'Connection was closed before we received a valid response from endpoint URL: "{endpoint.shown}" ({error})'
    found = AwsError("ConnectionClosedError", said, 0)
    found.__cause__ = error
    return found
