"""Non-blocking keep-alive connections to AWS, one request at a time each. llhttp parses the responses."""

from __future__ import annotations

import socket
import ssl
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httptools

from replicator import __version__
from replicator.aws.endpoint import Endpoint, authorization
from replicator.aws.errors import AwsError, refusal

_READ_SIZE = 1 << 18  # bytes per recv
_MAX_HEAD = 1 << 16  # bytes; DynamoDB's are a few hundred
_MAX_BODY = 1 << 27  # bytes; a DynamoDB response holds at most 16 MB of items, which are larger as JSON
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class HttpConnection:
    """A connection with at most one request in flight, whose ``name`` it keeps (None: idle).

    ``since``: when bytes last went in or out; ``begun``: when the request was sent. Both are monotonic.
    """

    def __init__(self, connection: socket.socket, pool: ConnectionPool) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.pool = pool
        self.name: Any = None
        self.since = self.begun = 0.0
        self.unsent = b""
        self._parser: Any = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._complete = self._keep_alive = self._surplus = False
        self._checksum = b""
        self._in_body = False
        self._size = 0  # bytes of the head, then of the body

    def send(self, name: object, message: bytes, now: float) -> None:
        """Start sending a request. ``message``: all of it. OSError if the connection is closed."""
        self.name, self.begun, self.unsent = name, now, message
        self.push(now)

    def push(self, now: float) -> None:
        """Send as much as the socket accepts without blocking."""
        self.since = now
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except _WOULD_BLOCK:
            return

    def pull(self, now: float) -> bool:
        """Read what has arrived; return whether the response is complete. OSError if the connection is unusable."""
        while not self._complete:
            try:
                data = self.socket.recv(_READ_SIZE)
            except _WOULD_BLOCK:
                return False
            if not data:
                raise ConnectionError("the connection was closed before the response was complete")
            self.since = now
            self._feed(data)
        return True

    def response(self) -> bytes | AwsError:
        """The body of the complete response, or the error that it is."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._complete = False
        status, checksum = self._parser.get_status_code(), self._checksum
        self._checksum = b""
        if checksum and checksum != b"%d" % zlib.crc32(body):
            return AwsError("ChecksumMismatch", "the response was corrupted in transit", 0)
        return body if status == 200 else refusal(body, status)

    def usable(self, now: float) -> bool:
        """Whether this idle connection can be reused: not if it was closed, or received an unsolicited response."""
        try:
            self.pull(now)
        except OSError:
            return False
        return True

    @property
    def reusable(self) -> bool:
        """Whether another request may follow the complete response."""
        return self._keep_alive and not self.unsent

    def close(self) -> None:
        self.socket.close()

    def _feed(self, data: bytes) -> None:
        if self.name is None:
            raise ConnectionError("unsolicited response")
        if not self._in_body:
            self._size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as e:
            raise ConnectionError(f"the response is not HTTP: {e}") from e
        if self._size > (_MAX_BODY if self._in_body else _MAX_HEAD):
            raise ConnectionError("the response is larger than any DynamoDB sends")
        if self._surplus:
            raise ConnectionError("two responses to one request")

    # Callbacks of llhttp

    def on_message_begin(self) -> None:
        self._surplus = self._complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-amz-crc32":
            self._checksum = value

    def on_headers_complete(self) -> None:
        self._in_body, self._size = True, 0

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self._in_body, self._size = False, 0
        self._complete, self._keep_alive = (
            True,
            bool(self._parser.should_keep_alive()),
        )  # only correct within this callback


class ConnectionPool:
    """The connections to one endpoint. ``opening``: how many are being opened.

    ``waiting``: requests without a connection: name, message, and since when they wait (wall clock).
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.start = _start(endpoint)
        self.idle: list[HttpConnection] = []
        self.waiting: deque[tuple[object, bytes, float]] = deque()
        self.opening = 0


def _start(endpoint: Endpoint) -> bytes:
    """The constant first lines of a request. A forwarding proxy needs the whole URL, and its login."""
    place = endpoint.place
    if endpoint.proxied:
        parts = urlsplit(endpoint.url)
        place = f"{parts.scheme}://{parts.netloc}{place}"
    login: Mapping[str, str] = authorization(endpoint.proxy or "") if endpoint.proxied else {}
    lines = [f"POST {place} HTTP/1.1", f"user-agent: replicator/{__version__}", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in login.items()]
    return "".join(f"{line}\r\n" for line in lines).encode()
