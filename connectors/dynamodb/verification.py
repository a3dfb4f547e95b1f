"""Compares items of a table with expected ones by value, and repairs them on condition of their version."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from connectors.dynamodb.catalog import ask
from connectors.dynamodb.documents import Layout, Stored
from connectors.dynamodb.encode import Encoder
from connectors.dynamodb.responses import refusal
from replicator.aws.batch_get import BatchReader
from replicator.aws.client import Client
from replicator.aws.errors import AwsError, failure
from replicator.batch import Delete, DocumentId, Upsert
from replicator.items.attributes import Malformed, Typed, exact
from replicator.items.to_json import Unfit
from replicator.marks import mark_of
from replicator.target.verification import CHANGED, UNVERSIONED, Comparison, Walked

_EXPIRES = 5 * 365 * 86400  # seconds after its time in which DynamoDB still removes an item
_REFUSED = ("ValidationException", "ItemCollectionSizeLimitExceededException")


@dataclass(frozen=True, slots=True)
class TableVerification:
    """Comparison and repair of one table.

    ``expiry``: the attribute by which items expire here and in the source, each on its own; empty if they do not. An
    item past its time may be in either table or in both, so its absence is no difference. ``now``: wall clock.
    """

    client: Client
    layout: Layout
    reader: BatchReader
    expiry: str = ""
    now: Callable[[], float] = time.time

    def compare(self, expected: Sequence[Upsert]) -> list[Comparison]:
        refused: dict[DocumentId, str] = {}
        wanted: dict[DocumentId, Mapping[str, Typed]] = {}
        stored = Stored(self.layout)
        for write in expected:
            try:
                wanted[write.id] = orjson.loads(stored.item(write))
            except (Unfit, Malformed) as e:
                refused[write.id] = f"the document {e}"
        items = self._items([write.id for write in expected])
        return [self._comparison(write.id, items, wanted, refused) for write in expected]

    def _comparison(
        self,
        id: DocumentId,
        items: Mapping[DocumentId, Mapping[str, Typed]],
        wanted: Mapping[DocumentId, Mapping[str, Typed]],
        refused: Mapping[DocumentId, str],
    ) -> Comparison:
        item = items.get(id)
        version = None if item is None else self._version(item)
        if id in refused:
            return Comparison(version, refused=refused[id])
        expected = wanted[id]
        if item is None:
            return Comparison(UNVERSIONED if self._is_due(expected) else None)
        names = sorted((item.keys() | expected.keys()) - set(self.layout.ours))
        return Comparison(version, tuple(n for n in names if not _equal(item.get(n), expected.get(n))))

    def versions(self, ids: Sequence[DocumentId]) -> list[int | None]:
        ours = (self.layout.version, self.layout.deleted) if not self.layout.pristine else ()
        items = self._items(ids, (*self.layout.keys.names, *ours))
        return [None if (item := items.get(id)) is None else self._version(item) for id in ids]

    def past(self, ids: Sequence[DocumentId]) -> list[bool]:
        names = tuple(dict.fromkeys((*self.layout.keys.names, self.expiry)))
        items = self._items(ids, names) if self.expiry else {}
        return [id in items and self._is_due(items[id]) for id in ids]

    def walk(self, cursor: str | None, within: DocumentId) -> Walked:
        request = self._query(within) if within else self._scan()
        if cursor is not None:
            request["ExclusiveStartKey"] = orjson.loads(cursor)
        page = ask(self.client, "Query" if within else "Scan", request, self.layout.name)
        after = page.get("LastEvaluatedKey")
        ids = [self.layout.keys.key(item) for item in page["Items"] if self._is_live(item) and not self._is_due(item)]
        keys = self.layout.keys
        return Walked(ids, None if after is None else _cursor(after), lambda n: _cursor(keys.typed(ids[n])))

    def _scan(self) -> dict[str, Any]:
        wanted = dict.fromkeys((*self.layout.keys.names, *filter(None, [self.expiry])))
        names = {f"#k{n}": name for n, name in enumerate(wanted)}
        request = {"TableName": self.layout.name, "ConsistentRead": True, "ProjectionExpression": ", ".join(names)}
        if self.layout.pristine:
            return {**request, "ExpressionAttributeNames": names}
        names["#d"] = self.layout.deleted
        return {**request, "ExpressionAttributeNames": names, "FilterExpression": "attribute_not_exists(#d)"}

    def _query(self, within: DocumentId) -> dict[str, Any]:
        keys = list(zip(self.layout.keys.attributes, within, strict=False))
        return {
            "TableName": self.layout.name,
            "ConsistentRead": True,
            "KeyConditionExpression": " AND ".join(f"#k{n} = :k{n}" for n in range(len(keys))),
            "ExpressionAttributeNames": {f"#k{n}": key.name for n, (key, _) in enumerate(keys)},
            "ExpressionAttributeValues": {f":k{n}": {key.kind: text} for n, (key, text) in enumerate(keys)},
        }

    def _is_live(self, item: Mapping[str, Typed]) -> bool:
        return self.layout.pristine or self.layout.deleted not in item

    def _is_due(self, item: Mapping[str, Typed]) -> bool:
        """Whether the table's time to live may remove the item."""
        digits = item.get(self.expiry, {}).get("N") if self.expiry else None
        return digits is not None and self.now() - _EXPIRES < float(digits) <= self.now()

    def replace(self, writes: Sequence[Upsert]) -> list[str]:
        return [self._replaced(write) for write in writes]

    def _replaced(self, write: Upsert) -> str:
        try:
            item = orjson.loads(Stored(self.layout).item(write))
        except (Unfit, Malformed) as e:
            return f"the document {e}"
        item[self.layout.version] = {"N": str(write.version)}
        if self.layout.mark is not None:
            item[self.layout.mark] = {"S": mark_of(write.id)}
        return self._put(item, write.version)

    def remove(self, writes: Sequence[Delete]) -> list[str]:
        return [self._removed(write) for write in writes]

    def _removed(self, write: Delete) -> str:
        item = orjson.loads(Encoder(self.layout).tombstone(write.id, max(write.version, 0)) + b"}")["Item"]
        return self._put(item, write.version)

    def _put(self, item: Mapping[str, Typed], version: int) -> str:
        """Put an item in place of one whose version is exactly this, or which has none (UNVERSIONED)."""
        none = version == UNVERSIONED
        names = {"#v": self.layout.version, "#d": self.layout.deleted}
        condition = "attribute_not_exists(#v) AND attribute_exists(#k)" if none else "#v = :v"
        request: dict[str, Any] = {
            "TableName": self.layout.name,
            "Item": item,
            "ConditionExpression": f"{condition} AND attribute_not_exists(#d)",
            "ExpressionAttributeNames": {**names, "#k": self.layout.keys.names[0]} if none else names,
        }
        if not none:
            request["ExpressionAttributeValues"] = {":v": {"N": str(version)}}
        try:
            self.client.call("PutItem", request)
        except AwsError as e:
            if e.code == "ConditionalCheckFailedException":
                return CHANGED
            if e.code in _REFUSED:
                return refusal(e)
            raise failure(e, "PutItem", self.layout.name, place="target") from e
        return ""

    def _items(self, ids: Sequence[DocumentId], names: Sequence[str] = ()) -> dict[DocumentId, Mapping[str, Typed]]:
        """The items that exist, without tombstones."""
        encoder, keys = Encoder(self.layout), self.layout.keys
        possible = dict.fromkeys(id for id in ids if encoder.holds(id))
        images = self.reader.read([keys.typed(id) for id in possible], names)
        items = (orjson.loads(bytes(image)) for image in images)
        return {keys.key(item): item for item in items if self._is_live(item)}

    def _version(self, item: Mapping[str, Typed]) -> int:
        if self.layout.pristine or self.layout.version not in item:
            return UNVERSIONED
        return int(item[self.layout.version].get("N", UNVERSIONED))


def _cursor(key: Mapping[str, Any]) -> str:
    return orjson.dumps(key).decode()


def _equal(one: Typed | None, other: Typed | None) -> bool:
    if one is None or other is None or one == other:
        return one == other
    return bool(_value(one) == _value(other))


def _value(attribute: Typed) -> tuple[str, Any]:
    """An attribute as a value: equal numbers are equal however they are written, and sets have no order."""
    ((kind, inner),) = attribute.items()
    match kind:
        case "N":
            return kind, exact(inner)
        case "M":
            return kind, {name: _value(value) for name, value in inner.items()}
        case "L":
            return kind, [_value(value) for value in inner]
        case "NS":
            return kind, frozenset(map(exact, inner))
        case "SS" | "BS":
            return kind, frozenset(inner)
    return kind, inner
