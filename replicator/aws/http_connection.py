"""Connections to AWS that nobody waits for: a request out, its answer in, then the next. llhttp reads answers."""

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

_MOST = 1 << 18  # bytes taken from a connection at once
_LARGEST_HEAD = 1 << 16  # bytes; DynamoDB's are a few hundred
_LARGEST_BODY = 1 << 27  # bytes; DynamoDB answers with 16 MB of items at most, and JSON makes more of them
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class HttpConnection:
    """A connection that carries one request at a time. ``name`` is the request's.

    ``since``: when it last moved; ``begun``: when the request was sent.
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
        self._whole = self._lasts = self._unasked = False
        self._checksum = b""
        self._in_body = False
        self._size = 0  # bytes of the head, then of the body

    def send(self, name: object, message: bytes, now: float) -> None:
        """Begin the exchange. ``message``: the whole request."""
        self.name, self.begun, self.unsent = name, now, message
        self.push(now)

    def push(self, now: float) -> None:
        """Send as much as the connection takes now."""
        self.since = now
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except _LATER:
            return

    def pull(self, now: float) -> bool:
        """Take in what came; whether the answer is whole. OSError if the connection ended."""
        while not self._whole:
            try:
                data = self.socket.recv(_MOST)
            except _LATER:
                return False
            if not data:
                raise ConnectionError("the connection was closed before the response was complete")
            self.since = now
            self._feed(data)
        return True

    def answer(self) -> bytes | AwsError:
        """The body of the answer that is whole, or what it says instead."""
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._whole = False
        status, checksum = self._parser.get_status_code(), self._checksum
        self._checksum = b""
        if checksum and checksum != b"%d" % zlib.crc32(body):
            return AwsError("ChecksumMismatch", "the response was corrupted in transit", 0)
        return body if status == 200 else refusal(body, status)

    def usable(self, now: float) -> bool:
        """Whether the connection, which is idle, may take a request: not if it ended, or something came unasked."""
        try:
            self.pull(now)
        except OSError:
            return False
        return True

    @property
    def lasting(self) -> bool:
        """Whether another request may be sent after the answer that is whole."""
        return self._lasts and not self.unsent

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
        if self._size > (_LARGEST_BODY if self._in_body else _LARGEST_HEAD):
            raise ConnectionError("the response is larger than any DynamoDB sends")
        if self._unasked:
            raise ConnectionError("two responses to one request")

    # llhttp's calls

    def on_message_begin(self) -> None:
        self._unasked = self._whole

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
        self._whole, self._lasts = True, bool(self._parser.should_keep_alive())  # afterwards it says no


class ConnectionPool:
    """The connections to one endpoint. ``opening``: how many are to come.

    ``waiting``: requests, each with its name and the time (of the clock that people go by) since which it waits.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.start = _start(endpoint)
        self.idle: list[HttpConnection] = []
        self.waiting: deque[tuple[object, bytes, float]] = deque()
        self.opening = 0


def _start(endpoint: Endpoint) -> bytes:
    """A request's first lines. A proxy that reads it is told the whole URL, and who asks."""
    place = endpoint.place
    if endpoint.proxied:
        parts = urlsplit(endpoint.url)
        place = f"{parts.scheme}://{parts.netloc}{place}"
    given: Mapping[str, str] = authorization(endpoint.proxy or "") if endpoint.proxied else {}
    lines = [f"POST {place} HTTP/1.1", f"user-agent: replicator/{__version__}", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in given.items()]
    return "".join(f"{line}\r\n" for line in lines).encode()
