"""The interface to AWS: a request goes out as JSON, and the raw response body comes back.

boto3 does what it is good at (credentials, endpoints). Its response parser, ten times as expensive as the call itself,
never runs. The in-memory DynamoDB of ``replicator.testing`` implements the same interface.

Readers of a source are generators that yield each ``Call`` and are sent its response body, or have the AwsError thrown
into them. So one thread serves the calls of a thousand shards, and the simulation can complete them in any order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec

from replicator.aws.errors import AwsError

T = TypeVar("T")


class Client(Protocol):
    """DynamoDB and its streams."""

    def call(self, operation: str, request: Mapping[str, Any]) -> bytes:
        """The raw JSON response to ``operation`` (``GetRecords``, ``Scan``, …). AwsError if there is none.

        ``request`` is what is sent as JSON: binary values are base64 text. Thread-safe.
        """


class Call(msgspec.Struct, frozen=True):
    """A call to make, with the arguments of ``Client.call``.

    ``body``: the whole request as JSON, if already encoded; then ``request`` only needs what routing needs (TableName).
    ``decode``: what the caller decodes the response with. Those who share a response decode it once.
    """

    operation: str
    request: Mapping[str, Any]
    body: bytes | None = None
    decode: Callable[[bytes], Any] | None = None


class Calls(Protocol):
    """Makes calls concurrently. Not thread-safe."""

    def begin(self, name: object, call: Call) -> None:
        """Start a call; ``name`` identifies its response."""

    def next(self, timeout: float) -> tuple[Any, bytes | Exception] | None:
        """A response or error with its call's name, in any order; None if none came within ``timeout`` seconds."""

    def close(self) -> None:
        """Abandon the calls in flight."""


@runtime_checkable
class Concurrent(Protocol):
    """A client that can have many calls in flight without threads."""

    def calls(self) -> Calls: ...


def answered(client: Client, steps: Iterator[Call | T]) -> Iterator[T]:
    """What ``steps`` yields besides its calls, which are made here one by one."""
    with suppress(StopIteration):
        while True:
            yield _next(client, steps)  # not kept in a variable: pages are large


def completed(client: Client, steps: Generator[Call, bytes, T]) -> T:
    """What ``steps`` returns; its calls are made here one by one."""
    try:
        while True:
            _next(client, steps)
    except StopIteration as e:
        result: T = e.value
        return result


def _next(client: Client, steps: Any) -> Any:
    """The next thing other than a call that ``steps`` yields; StopIteration at its end."""
    resume = partial(next, steps)
    while isinstance(step := resume(), Call):
        try:
            body = client.call(step.operation, step.request)
        except Exception as e:  # any error belongs to the caller
            resume = partial(steps.throw, e)
        else:
            resume = partial(steps.send, body)
    return step


def require_whole(headers: Mapping[str, str], body: bytes) -> None:
    """AwsError (status 0) if a body does not match its length or checksum header, which boto3 does not compare."""
    length, checksum = headers.get("Content-Length"), headers.get("x-amz-crc32")
    if length is not None and length != str(len(body)) and not headers.get("Content-Encoding"):
        raise AwsError("IncompleteRead", "the connection was closed before the response was complete", 0)
    if checksum is not None and checksum != str(zlib.crc32(body)):
        raise AwsError("ChecksumMismatch", "the response was corrupted in transit", 0)


AT_ONCE = 12  # calls in flight at most
