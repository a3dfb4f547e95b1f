"""Limits for HTTP exchanges of urllib3: on a body's size (also decompressed), and on the time of the whole exchange.

urllib3's own timeout bounds each read from the socket, so a response that trickles would never end.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from urllib3.exceptions import ProtocolError, ReadTimeoutError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LARGEST = 1 << 27  # bytes; no legitimate response of DynamoDB or a search engine is larger
WHOLE = 5  # a whole response may take this many times the timeout, however steadily it trickles
_CHUNK = 1 << 18  # bytes
_RECORD = 1 << 14  # bytes; TLS sends at most so many at once


class TooLarge(ProtocolError):
    """A body is larger than its limit."""


class Response(Protocol):
    """The part of urllib3's response used here; the body must be unread."""

    @property
    def headers(self) -> object: ...
    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes: ...
    def release_conn(self) -> None: ...
    def close(self) -> None: ...


def bounded(connection: type[Any], seconds: float) -> type[Any]:
    """A subclass of a urllib3 connection class whose exchanges take at most ``seconds``, whatever the server sends.

    Bounds what the timeouts of single reads leave open: a head, chunk sizes or trailers that trickle, and responses
    100 Continue without end. Then raises TimeoutError, which urllib3 turns into ReadTimeoutError.
    """

    class Bounded(connection):  # type: ignore[misc]
        def connect(self) -> None:
            self.until = time.monotonic() + seconds  # for a proxy's response to CONNECT
            super().connect()

        def putrequest(self, *args: Any, **kwargs: Any) -> None:
            self.until = time.monotonic() + seconds
            super().putrequest(*args, **kwargs)

        def send(self, data: Any) -> None:
            if isinstance(self.sock, ssl.SSLSocket) and isinstance(data, bytes):
                for start in range(0, len(data), _RECORD):
                    _allow(self.sock, self.timeout, self.until)
                    super().send(data[start : start + _RECORD])
            else:  # the timeout of a plain socket is for all the data
                super().send(data)

        def response_class(self, sock: socket.socket, *args: Any, **kwargs: Any) -> http.client.HTTPResponse:
            response = http.client.HTTPResponse(sock, *args, **kwargs)
            response.fp = io.BufferedReader(_Received(response.fp.detach(), sock, self.until))
            return response

    return Bounded


def _allow(sock: socket.socket, timeout: float | None, until: float) -> None:
    """Let the next call on a socket take ``timeout``, and only until then. TimeoutError if that is over."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the exchange was not complete in time")
    sock.settimeout(left if timeout is None else min(timeout, left))


class _Received(io.RawIOBase):
    """What a socket receives, until a point in time (monotonic)."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, until: float) -> None:
        self._raw, self._sock, self._until = raw, sock, until
        self._timeout = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        _allow(self._sock, self._timeout, self._until)
        return self._raw.readinto(buffer)

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def body_of(response: Response, encoding: str | None, seconds: float, most: int | None = None) -> bytes:
    """The whole body, decompressed. urllib3's ReadTimeoutError after ``seconds``; TooLarge beyond ``most`` bytes.

    On error, closes the connection and releases it to the pool.
    """
    try:
        return _read(response, _decoder(encoding), time.monotonic() + seconds, LARGEST if most is None else most)
    except BaseException:
        response.close()
        response.release_conn()
        raise


def _read(response: Response, inflate: zlib._Decompress | None, until: float, most: int) -> bytes:
    parts: list[bytes] = []
    size = received = 0
    while data := response.read1(_CHUNK, decode_content=False):
        received += len(data)
        part = data if inflate is None else _inflated(inflate, data, most - size + 1)
        size += len(part)
        parts.append(part)
        if max(size, received) > most:
            raise TooLarge(f"the response is larger than {most:,} bytes")
        if time.monotonic() > until:
            raise ReadTimeoutError(None, None, "the response was not complete in time")  # type: ignore[arg-type]
    if inflate is not None and received and not inflate.eof:
        raise ProtocolError("the connection was closed before the response was complete")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decoder(encoding: str | None) -> zlib._Decompress | None:
    if encoding in (None, "", "identity"):
        return None
    if encoding == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    raise ProtocolError("the response has an unexpected content encoding")


def _inflated(inflate: zlib._Decompress, data: bytes, most: int) -> bytes:
    """At most ``most`` bytes; anything beyond is over the limit anyway."""
    try:
        return inflate.decompress(data, most)
    except zlib.error as e:
        raise ProtocolError("the response is damaged: invalid gzip") from e
