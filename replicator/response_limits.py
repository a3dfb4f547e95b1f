"""Bodies of HTTP responses that urllib3 receives, within limits: of size, also when decompressed, and of time."""

from __future__ import annotations

import time
import zlib
from typing import Protocol

from urllib3.exceptions import ProtocolError, ReadTimeoutError

LARGEST = 1 << 27  # bytes; neither DynamoDB nor a search engine has reason to answer with more
WHOLE = 5  # times the timeout: what a whole response may take, however steadily it trickles
_AT_ONCE = 1 << 18  # bytes


class Response(Protocol):
    """What is needed of urllib3's responses, one that was not read yet."""

    @property
    def headers(self) -> object: ...
    def read1(self, amt: int | None = None, decode_content: bool | None = None) -> bytes: ...
    def release_conn(self) -> None: ...
    def close(self) -> None: ...


def body_of(response: Response, encoding: str | None, seconds: float) -> bytes:
    """The whole body, decompressed. urllib3's ReadTimeoutError after ``seconds``; ProtocolError if it is too large.

    After an error the connection is closed, and its place in the pool is free.
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
    while data := response.read1(_AT_ONCE, decode_content=False):
        received += len(data)
        part = data if inflate is None else _inflated(inflate, data, LARGEST - size + 1)
        size += len(part)
        parts.append(part)
        if max(size, received) > LARGEST:
            raise ProtocolError(f"the response is larger than {LARGEST:,} bytes")
        if time.monotonic() > until:
            raise ReadTimeoutError(None, None, "the response was not whole in time")  # type: ignore[arg-type]
    if inflate is not None and received and not inflate.eof:
        raise ProtocolError("the connection was closed before the response was whole")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _decoder(encoding: str | None) -> zlib._Decompress | None:
    if encoding in (None, "", "identity"):
        return None
    if encoding == "gzip":
        return zlib.decompressobj(16 + zlib.MAX_WBITS)
    raise ProtocolError("the response is encoded in a way that was not asked for")


def _inflated(inflate: zlib._Decompress, data: bytes, most: int) -> bytes:
    """At most so many bytes: more are too many anyway."""
    try:
        return inflate.decompress(data, most)
    except zlib.error as e:
        raise ProtocolError("the response is damaged: it is no gzip") from e
