"""Item by item and page by page: what the calls that write, look up and scan do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from replicator.change import Key
from replicator.testing.dynamodb.catalog import Catalog
from replicator.testing.dynamodb.faults import Faults
from replicator.testing.dynamodb.refusals import invalid
from replicator.testing.dynamodb.rows import Row, Table, typeds_of

_SCAN_BYTES = 1 << 20
_BATCH_BYTES = 16 << 20
_UNIT = 4096  # bytes that one read unit covers


class Items:
    """The operations on items. ``page_items``: at most so many in a scan's page, for tests with small tables."""

    def __init__(self, catalog: Catalog, faults: Faults) -> None:
        self._catalog = catalog
        self._faults = faults
        self.page_items: int | None = None

    def put_item(self, request: Mapping[str, Any]) -> bytes:
        self._catalog.table(request["TableName"]).put(request["Item"])
        return b"{}"

    def delete_item(self, request: Mapping[str, Any]) -> bytes:
        table = self._catalog.table(request["TableName"])
        table.remove(table.key(request["Key"]))
        return b"{}"

    def update_item(self, request: Mapping[str, Any]) -> bytes:
        """SET and REMOVE of top-level attributes; an absent item is made."""
        table = self._catalog.table(request["TableName"])
        key = table.key(request["Key"])
        old = table.get(key)
        item = table.typed(key) if old is None else typeds_of(old)
        item |= _settings(request)
        for name in _removals(request):
            item.pop(name, None)
        table.put(item | table.typed(key))
        return b"{}"

    def get_item(self, request: Mapping[str, Any]) -> bytes:
        table = self._catalog.table(request["TableName"])
        row = table.get(table.key(request["Key"]), bool(request.get("ConsistentRead")))
        found: dict[str, Any] = {} if row is None else {"Item": orjson.Fragment(row.image)}
        if _counted(request):
            found["ConsumedCapacity"] = _capacity(table, [row.size if row else 0], request)
        return orjson.dumps(found)

    def batch_write_item(self, request: Mapping[str, Any]) -> bytes:
        wanted = [(self._catalog.table(name), w) for name, writes in request["RequestItems"].items() for w in writes]
        if not 1 <= len(wanted) <= 25:
            raise invalid("Too many items requested for the BatchWriteItem call, or none")
        keys = [(table.name, _written_key(table, write)) for table, write in wanted]
        if len(set(keys)) < len(keys):
            raise invalid("Provided list of item keys contains duplicates")
        for (table, write), (_, key) in zip(wanted, keys, strict=True):
            if "PutRequest" in write:
                table.put(write["PutRequest"]["Item"])
            else:
                table.remove(key)
        return b'{"UnprocessedItems":{}}'

    def batch_get_item(self, request: Mapping[str, Any]) -> bytes:
        wanted = {name: dict(asked) for name, asked in request["RequestItems"].items()}
        count = sum(len(asked["Keys"]) for asked in wanted.values())
        if not 1 <= count <= 100:
            raise invalid("Too many items requested for the BatchGetItem call, or none")
        most = self._faults.take("unprocessed", request)
        budget = [count if most is None else most, _BATCH_BYTES]
        found: dict[str, Any] = {"Responses": {}, "UnprocessedKeys": {}}
        if _counted(request):
            found["ConsumedCapacity"] = []
        for name, asked in wanted.items():
            table = self._catalog.table(name)
            rows, rest = _looked_up(table, asked, budget)
            found["Responses"][name] = _joined(rows)
            if rest:
                found["UnprocessedKeys"][name] = asked | {"Keys": rest}
            if _counted(request):
                found["ConsumedCapacity"].append(_capacity(table, [row.size for row in rows], asked))
        return orjson.dumps(found)

    def scan(self, request: Mapping[str, Any]) -> bytes:
        table = self._catalog.table(request["TableName"])
        segment, total = _segment(request)
        limit = min(request.get("Limit", 1 << 40), self.page_items or 1 << 40)
        if limit < 1:
            raise invalid("Value at 'limit' failed to satisfy constraint: Member must have value greater than 0")
        start = request.get("ExclusiveStartKey")
        after = None if start is None else table.key(start)
        rows, reached = _page(table.walk(segment, total, after, bool(request.get("ConsistentRead"))), limit)
        found: dict[str, Any] = {"Count": len(rows), "Items": _joined(rows), "ScannedCount": len(rows)}
        if reached is not None:
            found["LastEvaluatedKey"] = table.typed(reached)
        if _counted(request):
            found["ConsumedCapacity"] = _capacity(table, [sum(row.size for row in rows)], request)
        return orjson.dumps(found)


def _joined(rows: Iterable[Row]) -> orjson.Fragment:
    return orjson.Fragment(b"[" + b",".join(row.image for row in rows) + b"]")


def _page(walk: Iterable[tuple[Key, Row]], limit: int) -> tuple[list[Row], Key | None]:
    """The rows of one page, and the key it reached unless it came to the end."""
    rows: list[Row] = []
    size = 0
    for key, row in walk:
        rows.append(row)
        size += row.size
        if len(rows) == limit or size >= _SCAN_BYTES:
            return rows, key
    return rows, None


def _segment(request: Mapping[str, Any]) -> tuple[int, int]:
    segment, total = request.get("Segment"), request.get("TotalSegments")
    if segment is None and total is None:
        return 0, 1
    if segment is None or total is None or not 1 <= total <= 1_000_000 or not 0 <= segment < total:
        raise invalid("The Segment parameter is zero-based and must be less than parameter TotalSegments (1..1000000)")
    return segment, total


def _looked_up(table: Table, asked: Mapping[str, Any], budget: list[int]) -> tuple[list[Row], list[Any]]:
    """The rows of the keys that fit the ``budget`` (keys, bytes), which shrinks; and the keys left over."""
    keys, consistent = asked["Keys"], bool(asked.get("ConsistentRead"))
    parsed = [table.key(key) for key in keys]
    if len(set(parsed)) < len(parsed):
        raise invalid("Provided list of item keys contains duplicates")
    found: list[Row] = []
    for at, key in enumerate(parsed):
        row = table.get(key, consistent)
        size = row.size if row is not None else 0
        if budget[0] < 1 or budget[1] < size:
            return found, keys[at:]
        budget[0], budget[1] = budget[0] - 1, budget[1] - size
        if row is not None:
            found.append(row)
    return found, []


def _written_key(table: Table, write: Mapping[str, Any]) -> Key:
    if "PutRequest" in write:
        item = write["PutRequest"]["Item"]
        return table.key({name: item[name] for name in table.keys.names if name in item})
    return table.key(write["DeleteRequest"]["Key"])


def _counted(request: Mapping[str, Any]) -> bool:
    return bool(request.get("ReturnConsumedCapacity", "NONE") != "NONE")


def _capacity(table: Table, sizes: Iterable[int], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What reading so many bytes at a time costs: half a unit for each 4 KB, a whole one for a consistent read."""
    unit = 1.0 if asked.get("ConsistentRead") else 0.5
    units = unit * sum(max(1, math.ceil(size / _UNIT)) for size in sizes)
    return {"CapacityUnits": units, "TableName": table.name}


_CLAUSES = re.compile(r"\b(SET|REMOVE|ADD|DELETE)\b", re.IGNORECASE)


def _clauses(request: Mapping[str, Any]) -> dict[str, str]:
    words = _CLAUSES.split(request.get("UpdateExpression", ""))[1:]
    found = {verb.upper(): text for verb, text in zip(words[::2], words[1::2], strict=True)}
    if found.keys() - {"SET", "REMOVE"}:
        raise invalid("the in-memory DynamoDB knows only SET and REMOVE of top-level attributes")
    return found


def _name(request: Mapping[str, Any], token: str) -> str:
    token = token.strip()
    found = request.get("ExpressionAttributeNames", {}).get(token, token)
    if not re.fullmatch(r"[#\w]+", token) or found.startswith("#"):
        raise invalid(f"the in-memory DynamoDB knows only SET and REMOVE of top-level attributes, not {token!r}")
    return str(found)


def _settings(request: Mapping[str, Any]) -> dict[str, Any]:
    text = _clauses(request).get("SET", "")
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    values = request.get("ExpressionAttributeValues", {})
    unknown = [value.strip() for _, _, value in pairs if value.strip() not in values]
    if unknown:
        raise invalid(f"An expression attribute value used in expression is not defined: {', '.join(unknown)}")
    return {_name(request, name): values[value.strip()] for name, _, value in pairs}


def _removals(request: Mapping[str, Any]) -> list[str]:
    return [_name(request, name) for name in _clauses(request).get("REMOVE", "").split(",") if name.strip()]
