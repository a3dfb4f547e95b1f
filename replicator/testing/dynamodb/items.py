"""The read operations: GetItem, BatchGetItem, Query and Scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from replicator.items.attributes import Typeds
from replicator.key import Key
from replicator.testing.dynamodb.catalog import Catalog
from replicator.testing.dynamodb.expressions import Terms, equalities, parsed, projected
from replicator.testing.dynamodb.faults import Faults
from replicator.testing.dynamodb.refusals import invalid
from replicator.testing.dynamodb.rows import Row, Table, typeds_of

_SCAN_BYTES = 1 << 20
_BATCH_BYTES = 16 << 20
_UNIT = 4096  # bytes that one read unit covers


class Items:
    """The operations that read items. ``page_items``: maximum items per page, for tests with small tables."""

    def __init__(self, catalog: Catalog, faults: Faults) -> None:
        self._catalog = catalog
        self._faults = faults
        self.page_items: int | None = None

    def get_item(self, request: Mapping[str, Any]) -> bytes:
        table = self._catalog.table(request["TableName"])
        row = table.get(table.key(request["Key"]), bool(request.get("ConsistentRead")))
        terms = Terms(request)
        found: dict[str, Any] = {} if row is None else {"Item": _shown(row, projected(request, terms))}
        terms.check_used()
        if _counted(request):
            found["ConsumedCapacity"] = _capacity(table, [row.size if row else 0], request)
        return orjson.dumps(found)

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
        start = request.get("ExclusiveStartKey")
        after = None if start is None else table.key(start)
        return self._page_of(table, table.walk(segment, total, after, bool(request.get("ConsistentRead"))), request)

    def query(self, request: Mapping[str, Any]) -> bytes:
        """The items of one partition that match the key condition, by sort key."""
        table = self._catalog.table(request["TableName"])
        text, terms = request["KeyConditionExpression"], Terms(request)
        partition = table.keys.attributes[0]
        typed = equalities(text, terms).get(partition.name)
        if typed is None or partition.kind not in typed:
            raise invalid(f"Query condition missed key schema element: {partition.name}")
        start = request.get("ExclusiveStartKey")
        after = None if start is None else table.key(start)
        fits = parsed(text, terms)
        rows = table.partition(
            table.keys_text(partition, typed),
            after,
            forward=bool(request.get("ScanIndexForward", True)),
            consistent=bool(request.get("ConsistentRead")),
        )
        return self._page_of(table, ((k, row) for k, row in rows if fits(typeds_of(row))), request, terms)

    def _page_of(
        self,
        table: Table,
        walk: Iterable[tuple[Key, Row]],
        request: Mapping[str, Any],
        terms: Terms | None = None,
    ) -> bytes:
        limit = min(request.get("Limit", 1 << 40), self.page_items or 1 << 40)
        if limit < 1:
            raise invalid("Value at 'limit' failed to satisfy constraint: Member must have value greater than 0")
        terms = terms or Terms(request)
        keeps, projection = parsed(request.get("FilterExpression"), terms), projected(request, terms)
        terms.check_used()
        rows, reached = _page(walk, limit)
        kept = rows if "FilterExpression" not in request else [row for row in rows if keeps(typeds_of(row))]
        items = _joined(kept) if projection is None else [_shown(row, projection) for row in kept]
        found: dict[str, Any] = {"Count": len(kept), "Items": items, "ScannedCount": len(rows)}
        if reached is not None:
            found["LastEvaluatedKey"] = table.typed(reached)
        if _counted(request):
            found["ConsumedCapacity"] = _capacity(table, [sum(row.size for row in rows)], request)
        return orjson.dumps(found)


def _shown(row: Row, projection: Callable[[Typeds], Typeds] | None) -> Any:
    return orjson.Fragment(row.image) if projection is None else projection(typeds_of(row))


def _joined(rows: Iterable[Row]) -> orjson.Fragment:
    return orjson.Fragment(b"[" + b",".join(row.image for row in rows) + b"]")


def _page(walk: Iterable[tuple[Key, Row]], limit: int) -> tuple[list[Row], Key | None]:
    """The rows of one page, and its last key unless the scan is complete."""
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
    """The rows of the keys that fit the ``budget`` (keys, bytes), which is reduced, and the remaining keys."""
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


def _counted(request: Mapping[str, Any]) -> bool:
    return bool(request.get("ReturnConsumedCapacity", "NONE") != "NONE")


def _capacity(table: Table, sizes: Iterable[int], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Read capacity units: half a unit per 4 KB, a whole one for consistent reads."""
    unit = 1.0 if asked.get("ConsistentRead") else 0.5
    units = unit * sum(max(1, math.ceil(size / _UNIT)) for size in sizes)
    return {"CapacityUnits": units, "TableName": table.name}
