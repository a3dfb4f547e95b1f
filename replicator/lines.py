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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import orjson

from replicator import __version__
from replicator.connecting import Endpoint, authorization, connected
from replicator.errors import ReplicatorError
from replicator.line import Line
from replicator.sigv4 import Keys, Signer
from replicator.wire import Call, WireError

CONTENT = "application/x-amz-json-1.0"
_STALE = 20.0  # seconds after which an idle connection is not trusted any more
_LOOK = 1.0  # seconds between two looks at what waits too long, at most


@dataclass(frozen=True, slots=True)
class Route:
    """Where calls of an operation go. ``target``: its X-Amz-Target; ``service``: what requests are signed for."""

    endpoint: Endpoint
    target: str
    service: str


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that waits for a connection."""

    name: object
    endpoint: Endpoint
    message: bytes


class Lines:
    """``Calls`` over HTTP. ``timeout``: seconds without a byte of an answer, and at most 5 of them for a connection.

    Nothing is repeated: an answer that got lost, or did not come, is a WireError with the status 0.
    """

    def __init__(self, route: Callable[[Call], Route], keys: Callable[[], Keys], timeout: float) -> None:
        self._route, self._keys = route, keys
        self._timeout = timeout
        self._signers: dict[tuple[Endpoint, str], Signer] = {}
        self._idle: dict[Endpoint, list[Line]] = {}
        self._busy: set[Line] = set()
        self._waiting: deque[_Waiting] = deque()
        self._answers: deque[tuple[object, bytes | Exception]] = deque()
        self._ready: deque[Line | None] = deque()
        self._opened: SimpleQueue[tuple[Endpoint, socket.socket | WireError]] = SimpleQueue()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)

    def begin(self, name: object, call: Call) -> None:
        try:
            route = self._route(call)
            message = self._message(route, orjson.dumps(call.request))
        except (WireError, ReplicatorError) as e:
            self._answers.append((name, e))
            return
        waiting = _Waiting(name, route.endpoint, message)
        line = self._free(route.endpoint)
        if line is not None:
            self._send(line, waiting)
        else:
            self._waiting.append(waiting)
            threading.Thread(target=self._open, args=(route.endpoint,), daemon=True, name="connecting").start()

    def next(self, timeout: float) -> tuple[object, bytes | Exception] | None:
        if not self._answers:
            self._look(min(timeout, _LOOK))
        return self._answers.popleft() if self._answers else None

    def close(self) -> None:
        self._closed = True
        for line in [*self._busy, *(line for lines in self._idle.values() for line in lines)]:
            line.close()
        self._busy.clear()
        self._idle.clear()
        self._drop_opened()
        self._selector.close()
        self._woken.close()
        self._wake.close()

    def _look(self, timeout: float) -> None:
        """Take in what came, of one connection after the other, until an answer is whole."""
        if not self._ready:
            self._ready.extend(key.data for key, _ in self._selector.select(timeout))
            self._give_up(time.monotonic() - self._timeout)
        while self._ready and not self._answers:
            line = self._ready.popleft()
            if line is None:
                self._take_opened()
            elif line.socket.fileno() >= 0:  # not ended meanwhile
                self._move(line)

    def _move(self, line: Line) -> None:
        try:
            if line.unsent:
                line.push()
                self._watch(line)
            whole = line.pull(time.monotonic())
        except OSError as e:
            self._end(line, _closed(line.endpoint, e))
            return
        if whole:
            self._answered(line)

    def _answered(self, line: Line) -> None:
        lasting = line.lasting
        self._answers.append((line.name, line.answer()))
        line.name = None
        if lasting:
            self._busy.discard(line)
            self._rest(line)
        else:
            self._end(line, None)

    def _end(self, line: Line, error: Exception | None) -> None:
        """A connection is over; ``error`` is for the request that was under way on it."""
        self._busy.discard(line)
        if line in (idle := self._idle.get(line.endpoint, [])):
            idle.remove(line)
        self._selector.unregister(line.socket)
        line.close()
        if line.name is not None and error is not None:
            self._answers.append((line.name, error))

    def _give_up(self, limit: float) -> None:
        """What waits too long, though what came of it was just taken in."""
        for line in [line for line in self._busy if line.since < limit and line not in self._ready]:
            said = f'Read timeout on endpoint URL: "{line.endpoint.shown}"'
            self._end(line, WireError("ReadTimeoutError", said, 0))

    # Requests

    def _free(self, endpoint: Endpoint) -> Line | None:
        """An idle connection that may still be good."""
        idle = self._idle.get(endpoint, [])
        while idle:
            line = idle.pop()
            if time.monotonic() - line.since <= _STALE:
                return line
            self._end(line, None)
        return None

    def _send(self, line: Line, waiting: _Waiting) -> None:
        self._busy.add(line)
        try:
            line.send(waiting.name, waiting.message, time.monotonic())
        except OSError as e:
            self._end(line, _closed(line.endpoint, e))
            return
        if line.unsent:
            self._watch(line)

    def _watch(self, line: Line) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.unsent else 0)
        self._selector.modify(line.socket, events, line)

    def _rest(self, line: Line) -> None:
        """The connection has nothing to do: it takes what waits for one."""
        waiting = next((w for w in self._waiting if w.endpoint == line.endpoint), None)
        if waiting is None:
            self._idle.setdefault(line.endpoint, []).append(line)
        else:
            self._waiting.remove(waiting)
            self._send(line, waiting)

    def _message(self, route: Route, body: bytes) -> bytes:
        endpoint = route.endpoint
        signer = self._signers.get((endpoint, route.service))
        if signer is None:
            signer = Signer(endpoint.host, endpoint.region, route.service, CONTENT)
            self._signers[endpoint, route.service] = signer
        head = signer.headers(route.target, body, self._keys(), time.time())
        return b"".join((_start(endpoint), head, b"content-length: %d\r\n\r\n" % len(body), body))

    # Connections

    def _open(self, endpoint: Endpoint) -> None:
        """In a thread of its own."""
        try:
            found: socket.socket | WireError = connected(endpoint, min(5.0, self._timeout))
        except WireError as e:
            found = e
        self._opened.put((endpoint, found))
        with contextlib.suppress(OSError):  # closed meanwhile
            self._wake.send(b".")
        if self._closed:
            self._drop_opened()

    def _take_opened(self) -> None:
        self._woken.recv(1)
        endpoint, found = self._opened.get()
        if isinstance(found, WireError):
            self._unreachable(endpoint, found)
            return
        line = Line(found, endpoint)
        line.since = time.monotonic()
        self._selector.register(found, selectors.EVENT_READ, line)
        self._rest(line)

    def _unreachable(self, endpoint: Endpoint, error: WireError) -> None:
        waiting = next((w for w in self._waiting if w.endpoint == endpoint), None)
        if waiting is not None:
            self._waiting.remove(waiting)
            self._answers.append((waiting.name, error))

    def _drop_opened(self) -> None:
        with contextlib.suppress(Empty):
            while True:
                _, found = self._opened.get_nowait()
                if not isinstance(found, WireError):
                    found.close()


def _closed(endpoint: Endpoint, error: OSError) -> WireError:
    said = f'Connection was closed before we received a valid response from endpoint URL: "{endpoint.shown}" ({error})'
    found = WireError("ConnectionClosedError", said, 0)
    found.__cause__ = error
    return found


def _start(endpoint: Endpoint) -> bytes:
    """The request's first lines. A proxy that reads it is told the whole URL, and who asks."""
    place = f"{endpoint.url.rstrip('/')}/" if endpoint.proxied else "/"
    given: Mapping[str, str] = authorization(endpoint.proxy or "") if endpoint.proxied else {}
    lines = [f"POST {place} HTTP/1.1", f"user-agent: replicator/{__version__}", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in given.items()]
    return "".join(f"{line}\r\n" for line in lines).encode()
