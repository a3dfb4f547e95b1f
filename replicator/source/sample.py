"""A few live items of a table, for `preview` and `check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.key import Key, KeySchema

_PAGE = 100  # items a Scan call asks for at most: small pages, because the table is somebody's production


class _Items(msgspec.Struct):
    Items: list[msgspec.Raw] | None
    LastEvaluatedKey: dict[str, Any] | None = None


class _Item(msgspec.Struct):
    Item: msgspec.Raw = msgspec.Raw(b"null")  # as where there is no item


def some(client: Client, table: str, limit: int) -> Iterator[bytes]:
    """The images of up to ``limit`` items, whichever come first."""
    cursor: dict[str, Any] | None = None
    while limit > 0:
        request = {"TableName": table, "ConsistentRead": True, "Limit": min(limit, _PAGE)}
        page = decoded(
            _call(client, "Scan", request | ({"ExclusiveStartKey": cursor} if cursor else {})), _Items, "Scan"
        )
        items = page.Items or ()
        yield from map(bytes, items)
        limit, cursor = limit - len(items), page.LastEvaluatedKey
        if cursor is None:
            return


def one(client: Client, table: str, keys: KeySchema, key: Key) -> bytes | None:
    """The image of the item with that key; None if there is none."""
    request = {"TableName": table, "Key": keys.typed(key), "ConsistentRead": True}
    found = bytes(decoded(_call(client, "GetItem", request), _Item, "GetItem").Item)
    return None if found == b"null" else found


def _call(client: Client, operation: str, request: dict[str, Any]) -> bytes:
    try:
        return client.call(operation, request)
    except AwsError as e:
        raise failure(e, operation, request["TableName"]) from e
