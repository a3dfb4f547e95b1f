"""One table: its items by key, and the order in which a scan walks them."""

from __future__ import annotations

import base64
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
import orjson

from replicator.items.attributes import Typeds
from replicator.key import Key, KeyAttribute, KeySchema
from replicator.testing.dynamodb.refusals import invalid
from replicator.testing.dynamodb.streams import HASHES, Change, Stream, hashed
from replicator.testing.dynamodb.values import image, item_size, sized_form, stored_form

Place = tuple[int, str, str | bytes | Decimal]
"""A key's position in a scan: hash of the partition key, partition key, sort key in its own order."""


class Row(msgspec.Struct, frozen=True):
    """An item as stored: its image and its size as AWS counts it."""

    image: bytes
    size: int


class Table:
    """A table's items. Each effective change is appended to the stream."""

    def __init__(
        self, name: str, keys: KeySchema, definition: Mapping[str, Any], now: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.name = name
        self.keys = keys
        self.definition = dict(definition)
        self.stream: Stream | None = None
        self.latest_stream: Stream | None = None
        self.ttl_attribute: str | None = None
        self.recoverable_since: float | None = None  # to a point in time; None: not at all
        self.now = now
        self.history: list[tuple[float, Key, bytes | None, bytes | None]] = []  # old and new images, while recoverable
        self.tags: dict[str, str] = {}
        self._rows: dict[Key, Row] = {}
        self._walk: list[tuple[Place, Key]] = []  # sorted, except for items put since the last scan
        self._placed: set[Key] = set()
        self._unsorted = False
        self._before: dict[Key, Row | None] | None = None  # each item before its last write, while reads lag
        self._key_row = lru_cache(maxsize=4096)(self._row_of_key)

    @property
    def recoverable(self) -> bool:
        return self.recoverable_since is not None

    def recover(self, *, enabled: bool) -> None:
        """Turn point-in-time recovery on or off. What happened before it is on cannot be exported."""
        if enabled != self.recoverable:
            self.recoverable_since = self.now() if enabled else None
            self.history.clear()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size(self) -> int:
        return sum(row.size for row in self._rows.values())

    def images(self) -> Iterator[bytes]:
        return (row.image for row in self._rows.values())

    def lag(self) -> None:
        """From now on, eventually consistent reads miss the last write of each item."""
        self._before = {}

    def catch_up(self) -> None:
        self._before = None

    def get(self, key: Key, consistent: bool = True) -> Row | None:
        if not consistent and self._before is not None and key in self._before:
            return self._before[key]
        return self._rows.get(key)

    def key(self, given: Mapping[str, Any]) -> Key:
        """The key in a request's ``Key``; ValidationException unless it is exactly the table's."""
        if set(given) != set(self.keys.names):
            raise invalid("The provided key element does not match the schema")
        return self._key(stored_form(given))

    def key_of(self, item: Mapping[str, Any]) -> Key:
        """The key of a whole item in a request."""
        return self._key({name: _one(name, item[name]) for name in self.keys.names if name in item})

    def keys_text(self, attribute: KeyAttribute, typed: Mapping[str, Any]) -> str:
        """A key attribute's value as it is in a ``Key``."""
        return KeySchema((attribute,)).key({attribute.name: typed})[0]

    def typed(self, key: Key) -> Typeds:
        """The key as DynamoDB writes it, e.g. as Keys of a record or as LastEvaluatedKey."""
        return stored_form(self.keys.typed(key))

    def put(self, item: Mapping[str, Any]) -> Row | None:
        """Store the item and return the one it replaced. Putting an equal item is no change."""
        typeds, size = sized_form(item)
        key = self._key(typeds)
        row, old = Row(image(typeds), size), self._rows.get(key)
        if old is not None and old.image == row.image:
            return old
        self._rows[key] = row
        if key not in self._placed:
            self._placed.add(key)
            self._walk.append((self._place(key), key))
            self._unsorted = True
        self._emit(key, old, row)
        return old

    def remove(self, key: Key, *, expired: bool = False) -> Row | None:
        """Remove an item and return it. Removing an absent item is no change."""
        old = self._rows.pop(key, None)
        if old is not None:
            self._emit(key, old, None, expired=expired)
        return old

    def walk(self, segment: int, total: int, after: Key | None, consistent: bool) -> Iterator[tuple[Key, Row]]:
        """The items of a segment after ``after``, in scan order. The table may change during iteration."""
        self._sort()
        first = bisect_left(self._walk, HASHES * segment // total, key=lambda entry: entry[0][0])
        last = bisect_left(self._walk, HASHES * (segment + 1) // total, key=lambda entry: entry[0][0])
        if after is not None:
            first = max(first, bisect_right(self._walk, self._place(after), key=lambda entry: entry[0]))
        for at in range(first, last):
            key = self._walk[at][1]
            row = self.get(key, consistent)
            if row is not None:
                yield key, row

    def partition(self, text: str, after: Key | None, *, forward: bool, consistent: bool) -> Iterator[tuple[Key, Row]]:
        """The items of a partition after ``after``, by sort key."""
        self._sort()
        at = hashed(text)
        first = bisect_left(self._walk, at, key=lambda entry: entry[0][0])
        last = bisect_right(self._walk, at, key=lambda entry: entry[0][0])
        found = [entry for entry in self._walk[first:last] if entry[1][0] == text]
        if after is not None:
            limit = self._place(after)
            found = [entry for entry in found if (entry[0] > limit if forward else entry[0] < limit)]
        for _, key in found if forward else reversed(found):
            row = self.get(key, consistent)
            if row is not None:
                yield key, row

    def _sort(self) -> None:
        if self._before is None and len(self._walk) > 2 * len(self._rows) + 16:  # mostly removed items: compact
            self._walk = [entry for entry in self._walk if entry[1] in self._rows]
            self._placed = set(self._rows)
        if self._unsorted:
            self._walk.sort()
            self._unsorted = False

    def _emit(self, key: Key, old: Row | None, new: Row | None, *, expired: bool = False) -> None:
        if self._before is not None:
            self._before[key] = old
        if self.recoverable_since is not None:
            before, after = (None if row is None else row.image for row in (old, new))
            self.history.append((self.now(), key, before, after))
        if self.stream is None:
            return
        shown = self._key_row(key)
        sizes = shown.size, 0 if old is None else old.size, 0 if new is None else new.size
        before, after = (None if row is None else row.image for row in (old, new))
        change = Change(shown.image, before, after, sizes, expired)
        self.stream.emit(hashed(key[0]), change)

    def _row_of_key(self, key: Key) -> Row:
        """The key as stream records show it."""
        typeds = self.typed(key)
        return Row(image(typeds), item_size(typeds))

    def _key(self, typeds: Typeds) -> Key:
        for a in self.keys.attributes:
            _check_key(a, typeds.get(a.name))
        found = self.keys.key(typeds)
        _check_sizes(found)
        return found

    def _place(self, key: Key) -> Place:
        sort = _ORDERED[self.keys.attributes[1].kind](key[1]) if len(key) > 1 else ""
        return hashed(key[0]), key[0], sort


_ORDERED: Mapping[str, Any] = {"S": str.encode, "N": Decimal, "B": base64.b64decode}


def _check_key(attribute: KeyAttribute, given: Mapping[str, Any] | None) -> None:
    name, kind = attribute.name, attribute.kind
    if given is None:
        raise invalid(f"One or more parameter values were invalid: Missing the key {name} in the item")
    if kind not in given:
        actual = next(iter(given))
        raise invalid(
            f"One or more parameter values were invalid: Type mismatch for key {name} expected: {kind} actual: {actual}"
        )
    if given[kind] == "":
        raise invalid(
            "One or more parameter values are not valid. The AttributeValue for a key attribute cannot contain an "
            f"empty value. Key: {name}"
        )


def _check_sizes(key: Key) -> None:
    if len(key[0].encode()) > 2048:
        raise invalid(
            "One or more parameter values were invalid: "
            "Size of hashkey has exceeded the maximum size limit of2048 bytes"
        )
    if len(key) > 1 and len(key[1].encode()) > 1024:
        raise invalid(
            "One or more parameter values were invalid: "
            "Aggregated size of all range keys has exceeded the size limit of 1024 bytes"
        )


def _one(name: str, attribute: Any) -> Any:
    return stored_form({name: attribute})[name]


def typeds_of(row: Row) -> Typeds:
    found: Typeds = orjson.loads(row.image)
    return found
