"""Reads chosen items by their keys, consistently, for a partial resync."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec
import orjson

from replicator.aws.batch_get import of_table
from replicator.aws.client import Call, Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.backoff import backoff
from replicator.change import ScanPage
from replicator.errors import TransientError
from replicator.key import Key
from replicator.source.decoding import KeyReader
from replicator.source.scan import LONGEST_BACKOFF, QUICKEST_BACKOFF, Scanned
from replicator.source.table import SourceTable
from replicator.state import SegmentState

AT_ONCE = 25  # keys in a request: 10 MB of images at most


class _Consumed(msgspec.Struct):
    CapacityUnits: float | None = None


class _Unprocessed(msgspec.Struct):
    Keys: list[msgspec.Raw] | None = None


class _Responses(msgspec.Struct):
    """``Responses`` is required: otherwise any JSON object would say that no item exists."""

    Responses: dict[str, list[msgspec.Raw] | None]
    UnprocessedKeys: dict[str, _Unprocessed | None] | None = None
    ConsumedCapacity: list[_Consumed] | None = None


def check_permitted(client: Client, table: SourceTable, key: Key) -> None:
    """NotPermitted if items may not be looked up: a run would end with that, again and again."""
    request = {"RequestItems": {table.requested: {"Keys": [table.keys.typed(key)]}}}
    try:
        client.call("BatchGetItem", request)
    except AwsError as e:
        raise failure(e, "BatchGetItem", table.requested) from e


def read(
    table: Scanned, segment: int, state: SegmentState, *, keeps_expired: bool
) -> Generator[Call | ScanPage, Any, None]:
    """Yields calls and pages of the items with the segment's keys, from its cursor on.

    An item that does not exist has no image, so that its document is removed. If the target ``keeps_expired`` items,
    such an item is left out: it may have expired. A failed step yields a page with ``waiting_for``.
    """
    at = 0 if state.cursor is None else int(orjson.loads(state.cursor)["read"])
    failures = 0
    while at < len(state.keys):
        keys = state.keys[at : at + AT_ONCE]
        try:
            images, units, size = yield from _images(table, keys)
        except TransientError as e:
            failures += 1
            rest = backoff(failures, table.random, base=QUICKEST_BACKOFF, limit=LONGEST_BACKOFF)
            yield ScanPage(segment, cursor={"read": at}, rest=rest, waiting_for=str(e))
            continue
        failures, at = 0, at + len(keys)
        items = [(key, images.get(key)) for key in keys if key in images or not keeps_expired]
        yield ScanPage(segment, items, {"read": at} if at < len(state.keys) else None, read_units=units, size=size)


def _images(table: Scanned, keys: tuple[Key, ...]) -> Generator[Call, bytes, tuple[dict[Key, msgspec.Raw], float, int]]:
    """The images of the items that exist, the read units they took, and their size."""
    reader, images, units, size = KeyReader(table.keys), dict[Key, msgspec.Raw](), 0.0, 0
    wanted = list(keys)
    while wanted:
        request = {"Keys": [table.keys.typed(key) for key in wanted], "ConsistentRead": True}
        try:
            body = yield Call(
                "BatchGetItem", {"RequestItems": {table.table: request}, "ReturnConsumedCapacity": "TOTAL"}
            )
        except AwsError as e:
            if e.code != "ResourceNotFoundException" or not table.identity:
                raise failure(e, "BatchGetItem", table.table) from e
            yield from table.check_same()
            raise TransientError(f"BatchGetItem on {table.table}: {e}") from e  # it is being created, or restored
        response = decoded(body, _Responses, "BatchGetItem")
        returned = of_table(response.Responses, table.table)
        images.update(reader.keyed(returned or (), "BatchGetItem"))
        left = of_table(response.UnprocessedKeys, table.table) or _Unprocessed()
        again = [key for key, _ in reader.keyed(left.Keys or (), "BatchGetItem")]
        if len(again) >= len(wanted):
            raise TransientError("BatchGetItem is throttled")
        wanted, size = again, size + len(body)
        units += sum(consumed.CapacityUnits or 0.0 for consumed in response.ConsumedCapacity or ())
    yield from table.check_same(answers=True)
    return images, units, size
