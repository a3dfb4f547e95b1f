"""Reads many items by key with BatchGetItem: consistent, several requests in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from replicator.aws.client import Call, Calls, Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.aws.threaded import calls_of
from replicator.errors import TransientError

MOST_KEYS = 100  # per request
_IN_FLIGHT = 6
_PATIENCE = 30.0  # seconds without a response
_THROTTLED = "BatchGetItem is throttled"

T = TypeVar("T")
TypedKey = Mapping[str, Mapping[str, str]]


class _Unprocessed(msgspec.Struct):
    Keys: list[dict[str, dict[str, str]]] | None = None


class _Consumed(msgspec.Struct):
    CapacityUnits: float | None = None


class _Responses(msgspec.Struct):
    """``Responses`` is required: otherwise any JSON object would say that no item exists."""

    Responses: dict[str, list[msgspec.Raw] | None]
    UnprocessedKeys: dict[str, _Unprocessed | None] | None = None
    ConsumedCapacity: list[_Consumed] | None = None


def of_table(answers: Mapping[str, T] | None, table: str) -> T | None:
    """What a response has for the ``table`` that a request named.

    TransientError if it names another one: then nothing says that the items which were asked for do not exist.
    """
    if others := (answers or {}).keys() - {table}:
        raise TransientError(f"BatchGetItem on {table}: the response names {min(others)!r} instead")
    return (answers or {}).get(table)


class BatchReader:
    """Reads items of one table. ``units``: read capacity units consumed so far. ``place``: for error messages."""

    def __init__(self, client: Client, table: str, place: str = "source") -> None:
        self._client = client
        self._table = table
        self._place = place
        self._calls: Calls | None = None
        self.units = 0.0

    def read(self, keys: Sequence[TypedKey], names: Sequence[str] = ()) -> list[msgspec.Raw]:
        """The images of the items that exist, in any order. ``names``: only these attributes; empty: all.

        TransientError if a request fails; the same call may follow.
        """
        pieces = deque(list(keys[at : at + MOST_KEYS]) for at in range(0, len(keys), MOST_KEYS))
        images: list[msgspec.Raw] = []
        in_flight: dict[int, list[TypedKey]] = {}
        try:
            self._calls = self._calls or calls_of(self._client)
            while pieces or in_flight:
                while pieces and len(in_flight) < _IN_FLIGHT:
                    number = max(in_flight, default=0) + 1
                    in_flight[number] = pieces.popleft()
                    self._calls.begin(number, self._call(in_flight[number], names))
                number, body = self._next(self._calls)
                read, left = self._taken(body, in_flight.pop(number))
                images += read
                if left:
                    pieces.append(left)
        except BaseException:
            self.close()  # with the requests in flight, whose responses nothing waits for
            raise
        return images

    def close(self) -> None:
        calls, self._calls = self._calls, None
        if calls is not None:
            calls.close()

    def _next(self, calls: Calls) -> tuple[int, bytes | Exception]:
        until = time.monotonic() + _PATIENCE
        while (answered := calls.next(max(0.0, until - time.monotonic()))) is None:
            if time.monotonic() >= until:
                raise TransientError(f"BatchGetItem on {self._table}: no response")
        return answered

    def _call(self, keys: Sequence[TypedKey], names: Sequence[str]) -> Call:
        wanted: dict[str, Any] = {"Keys": list(keys), "ConsistentRead": True}
        if names:
            placeholders = {f"#n{i}": name for i, name in enumerate(names)}
            wanted |= {"ProjectionExpression": ", ".join(placeholders), "ExpressionAttributeNames": placeholders}
        request = {"RequestItems": {self._table: wanted}, "ReturnConsumedCapacity": "TOTAL"}
        return Call("BatchGetItem", request)

    def _taken(
        self, body: bytes | Exception, asked: Sequence[TypedKey]
    ) -> tuple[Sequence[msgspec.Raw], list[TypedKey]]:
        """The images in a response, and the keys to ask for again."""
        if isinstance(body, AwsError):
            raise failure(body, "BatchGetItem", self._table, place=self._place) from body
        if isinstance(body, Exception):
            raise body
        response = decoded(body, _Responses, "BatchGetItem")
        self.units += sum(consumed.CapacityUnits or 0.0 for consumed in response.ConsumedCapacity or ())
        images = of_table(response.Responses, self._table) or []
        left = of_table(response.UnprocessedKeys, self._table)
        again: list[TypedKey] = [] if left is None else list(left.Keys or [])
        if len(again) == len(asked):
            raise TransientError(f"{_THROTTLED} on {self._table}")
        return images, again
