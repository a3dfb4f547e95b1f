"""Reads HTTP response bodies from urllib3 with limits on size (also decompressed) and on total time."""

from __future__ import annotations

import time
import zlib
from typing import Protocol

from urllib3.exceptions import ProtocolError, ReadTimeoutError

LARGEST = 1 << 27  # bytes; no legitimate response of DynamoDB or a search engine is larger
WHOLE = 5  # a whole response may take this many times the timeout, however steadily it trickles
_CHUNK = 1 << 18  # bytes


class Response(Protocol):
    """The part of urllib3's response used here; the body must be unread."""

    @property
    def headers(self) -> object: ...
    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes: ...
    def release_conn(self) -> None: ...
    def close(self) -> None: ...


def body_of(response: Response, encoding: str | None, seconds: float) -> bytes:
    """The whole body, decompressed. urllib3's ReadTimeoutError after ``seconds``; ProtocolError if it is too large.

    On error, closes the connection and releases it to the pool.
    """
    try:
        return _read(response, _decoder(encoding), time.monotonic() + seconds)
    except BaseException:
        response.close()
        response.release_conn()
        raise


def _read(response: Response, inflate: zlib._Decompress | None, until: float) -> bytes:
    parts: list[bytes] = []
    size = received = 0
    while data := response.read1(_CHUNK, decode_content=False):
        received += len(data)
        part = data if inflate is None else _inflated(inflate, data, LARGEST - size + 1)
        size += len(part)
        parts.append(part)
        if max(size, received) > LARGEST:
            raise ProtocolError(f"the response is larger than {LARGEST:,} bytes")
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
