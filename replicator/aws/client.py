"""The one way to AWS: a call goes out as JSON text and comes back as the raw body.

boto3 keeps what it is good at (credentials, endpoints); its parser, which costs ten times as much as the call, never
runs. The in-memory DynamoDB of ``replicator.testing`` answers the same method.

Whoever reads a source is a generator that yields each ``Call``: it is sent the body, or the WireError is thrown in. So
one thread carries the calls of a thousand shards, and the simulation answers them in any order it likes.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec

from replicator.aws.errors import AwsError

Found = TypeVar("Found")


class Client(Protocol):
    """DynamoDB and its streams."""

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        """The raw JSON body that answers ``operation`` (``GetRecords``, ``Scan``, ...); WireError otherwise.

        ``request`` is in the wire's own form: binary values are base64 text. May be called from several threads.
        """


class Call(msgspec.Struct, frozen=True):
    """A call that is to be made: see ``Client.call``.

    ``body``: the whole request as JSON, where it is at hand; ``request`` then need only say where it goes (TableName).
    """

    operation: str
    request: Mapping[str, Any]
    body: bytes | None = None


class Calls(Protocol):
    """Calls under way at the same time. One thread uses it."""

    def begin(self, name: object, call: Call) -> None:
        """Begin a call; ``name`` comes back with its answer."""

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        """The next answer, in any order; None if none came for so many seconds, or a shorter time."""

    def close(self) -> None:
        """Forget what is under way."""


@runtime_checkable
class Concurrent(Protocol):
    """A wire that can have many calls under way without threads."""

    def calls(self) -> Calls: ...


def answered(client: Client, steps: Iterator[Call | Found]) -> Iterator[Found]:
    """What ``steps`` yields besides its calls, which are made one after the other as they come."""
    with suppress(StopIteration):
        while True:
            yield _next(client, steps)  # nothing of it stays here


def completed(client: Client, steps: Generator[Call, bytes, Found]) -> Found:
    """What ``steps`` returns, its calls made one after the other."""
    try:
        while True:
            _next(client, steps)
    except StopIteration as e:
        found: Found = e.value
        return found


def _next(client: Client, steps: Any) -> Any:
    """What ``steps`` yields next that is no call; StopIteration at its end."""
    resume = partial(next, steps)
    while isinstance(found := resume(), Call):
        try:
            body = client.call(found.operation, found.request)
        except Exception as e:  # whatever it is, it is for who asked
            resume = partial(steps.throw, e)
        else:
            resume = partial(steps.send, body)
    return found


def require_whole(headers: Mapping[str, str], body: bytes) -> None:
    """The length and the checksum that an answer names, which nothing else compares."""
    length, checksum = headers.get("Content-Length"), headers.get("x-amz-crc32")
    if length is not None and length != str(len(body)) and not headers.get("Content-Encoding"):
        raise AwsError("IncompleteRead", "the connection was closed before the response was complete", 0)
    if checksum is not None and checksum != str(zlib.crc32(body)):
        raise AwsError("ChecksumMismatch", "the response was corrupted in transit", 0)


AT_ONCE = 12  # calls under way
