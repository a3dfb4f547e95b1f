"""Reads a few live items of a table, for `preview` and `check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.key import Key, KeySchema

_WHOLE: Mapping[str, int] = {}
_PAGE = 100  # items per Scan request at most: small pages, because this is a production table


class _Items(msgspec.Struct):
    Items: list[msgspec.Raw] | None
    LastEvaluatedKey: dict[str, Any] | None = None


class _Item(msgspec.Struct):
    Item: msgspec.Raw = msgspec.Raw(b"null")  # what a missing item counts as


def some(client: Client, table: str, limit: int, part: Mapping[str, int] = _WHOLE) -> Iterator[bytes]:
    """The images of up to ``limit`` items, in the order of a scan. ``part``: a segment of the table."""
    cursor: dict[str, Any] | None = None
    while limit > 0:
        request = {"TableName": table, "ConsistentRead": True, "Limit": min(limit, _PAGE), **part}
        page = decoded(
            _call(client, "Scan", request | ({"ExclusiveStartKey": cursor} if cursor else {})), _Items, "Scan"
        )
        items = page.Items or ()
        yield from map(bytes, items)
        limit, cursor = limit - len(items), page.LastEvaluatedKey
        if cursor is None:
            return


_SPREAD = 20  # parts of the table to read from


def spread(client: Client, table: str, items: int, limit: int) -> Iterator[bytes]:
    """The images of up to ``limit`` items from parts all over the table, which has about ``items``.

    A scan returns items in the order of their hashed keys, so each part is a random choice. Reads everything of a small
    table, and a few items of each part of a large one.
    """
    parts = min(_SPREAD, limit, max(1, items // limit))
    for part in range(parts):
        wanted = limit // parts + (part < limit % parts)
        yield from some(client, table, wanted, {"Segment": part, "TotalSegments": parts})


def one(client: Client, table: str, keys: KeySchema, key: Key) -> bytes | None:
    """The image of the item with this key; None if there is none."""
    request = {"TableName": table, "Key": keys.typed(key), "ConsistentRead": True}
    image = bytes(decoded(_call(client, "GetItem", request), _Item, "GetItem").Item)
    return None if image == b"null" else image


def _call(client: Client, operation: str, request: dict[str, Any]) -> bytes:
    try:
        return client.call(operation, request)
    except AwsError as e:
        raise failure(e, operation, request["TableName"]) from e
