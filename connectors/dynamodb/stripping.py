"""Removes from a table's items what replicator added to them. Others write to the table meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from connectors.dynamodb import catalog
from connectors.dynamodb.documents import Layout
from connectors.dynamodb.encode import Request
from connectors.dynamodb.responses import is_stored
from connectors.dynamodb.writer import Writer
from replicator.aws.client import Client
from replicator.errors import Unfinished
from replicator.marks import mark_of
from replicator.target.contract import Page

_UNIT = 1024  # bytes
_TOKENS = ("#v", "#d", "#m")

Names = tuple[str, str, str]
"""The attributes for the version, of tombstones, and for marks."""


def strip_page(client: Client, writer: Writer, layout: Layout, names: Names, after: str) -> Page:
    """Strip one page of the table. Items are read whole: only that tells a tombstone from one that others revived."""
    page = catalog.ask(client, "Scan", _scan(layout, names, after), layout.name)
    found = [(item, _ours(layout, names, item)) for item in page["Items"]]
    requests = [_request(layout, names, item, ours) for item, ours in found if ours]
    next_page = page.get("LastEvaluatedKey")
    cursor = None if next_page is None else orjson.dumps(next_page).decode()
    try:
        writer.write_all(requests)
    except Unfinished:
        cursor = after  # what remains of the page is found again
    done = [request.operation for request in requests if is_stored(request.answer)]
    return Page(cursor, done.count("UpdateItem"), done.count("DeleteItem"))


def _scan(layout: Layout, names: Names, after: str) -> dict[str, Any]:
    start = {"ExclusiveStartKey": orjson.loads(after)} if after else {}
    return {
        "TableName": layout.name,
        "ConsistentRead": True,
        "FilterExpression": "attribute_exists(#v) OR attribute_exists(#d) OR attribute_exists(#m)",
        "ExpressionAttributeNames": dict(zip(_TOKENS, names, strict=True)),
        **start,
    }


def _ours(layout: Layout, names: Names, item: Mapping[str, Any]) -> dict[str, str]:
    """The attributes that replicator stored, by their placeholders. Another attribute may bear the name of marks."""
    known = {token: name for token, name in zip(_TOKENS, names, strict=True) if name in item}
    if known.keys() == {"#m"} and item[names[2]] != {"S": mark_of(layout.keys.key(item))}:
        return {}
    return known


def _request(layout: Layout, names: Names, item: Mapping[str, Any], ours: Mapping[str, str]) -> Request:
    """Remove a tombstone, or our attributes from an item, if all of them still are what was read.

    So neither brings back an item that was deleted, nor undoes anything that was written meanwhile. A tombstone with
    other attributes is an item that an application has updated: it stays.
    """
    is_tombstone = names[1] in item and item.keys() <= {*layout.keys.names, *names}
    body = {
        "TableName": layout.name,
        "Key": {name: item[name] for name in layout.keys.names},
        "ConditionExpression": " AND ".join(f"{token} = :{token[1]}" for token in ours),
        "ExpressionAttributeNames": ours,
        "ExpressionAttributeValues": {f":{token[1]}": item[name] for token, name in ours.items()},
        "ReturnConsumedCapacity": "TOTAL",
    }
    if not is_tombstone:
        body["UpdateExpression"] = "REMOVE " + ", ".join(ours)
    units = float(max(1, math.ceil(len(orjson.dumps(item)) / _UNIT)))
    return Request("DeleteItem" if is_tombstone else "UpdateItem", layout.name, orjson.dumps(body), units)
