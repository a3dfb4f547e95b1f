"""Reads a few live items of a table, for `preview` and `check`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from replicator.aws.client import Client
from replicator.aws.errors import AwsError, decoded, failure
from replicator.key import Key, KeySchema

_PAGE = 100  # items per Scan request at most: small pages, because this is a production table


class _Items(msgspec.Struct):
    Items: list[msgspec.Raw] | None
    LastEvaluatedKey: dict[str, Any] | None = None


class _Item(msgspec.Struct):
    Item: msgspec.Raw = msgspec.Raw(b"null")  # what a missing item counts as


def some(client: Client, table: str, limit: int) -> Iterator[bytes]:
    """The images of up to ``limit`` items, in the order of a scan."""
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
    """The image of the item with this key; None if there is none."""
    request = {"TableName": table, "Key": keys.typed(key), "ConsistentRead": True}
    image = bytes(decoded(_call(client, "GetItem", request), _Item, "GetItem").Item)
    return None if image == b"null" else image


def _call(client: Client, operation: str, request: dict[str, Any]) -> bytes:
    try:
        return client.call(operation, request)
    except AwsError as e:
        raise failure(e, operation, request["TableName"]) from e
