"""A batch as requests: everything that can be done before anything is sent. Pure."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from connectors.dynamodb.documents import Layout, Stored
from replicator.aws.errors import AwsError
from replicator.batch import Batch, Delete, DocumentId, Part, Rejection, Upsert, Write
from replicator.errors import ReplicatorError
from replicator.items.attributes import Malformed, Typed
from replicator.items.to_json import Unfit
from replicator.key import KeySchema
from replicator.marks import mark_of

_SHOWS = b',"ReturnValuesOnConditionCheckFailure":"ALL_OLD"'
_COUNTS = b',"ReturnConsumedCapacity":"TOTAL"'
_UNIT = 1024  # bytes
LARGEST_KEYS = (2048, 1024)  # bytes of a partition key, of a sort key


@dataclass(slots=True, eq=False)
class Request:
    """``operation`` on ``table`` with its JSON ``body``. ``units``: estimated cost in write capacity units.

    ``answer``: the response's body or an error, also one that prevented sending it; None if it was not tried.
    ``then``: is sent once this one is stored.
    """

    operation: str
    table: str
    body: bytes
    units: float = 1.0
    answer: bytes | AwsError | ReplicatorError | None = None
    then: Request | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A write as a request's body, without its end. ``source``: the part of the batch it belongs to.

    ``plain``: of a delete, the body that leaves no tombstone; ``body`` then puts one. ``removal``: of a delete that
    must be marked, the body that removes its tombstone again; there is no way to mark a removal by itself.
    """

    write: Write
    source: str
    body: bytes
    plain: bytes | None = None
    removal: bytes | None = None

    def request(self, *, tombstones: bool, shows: bool, counts: bool) -> Request:
        """``shows``: a failed condition returns the stored item; ``counts``: the response tells its cost."""
        plainly = self.plain is not None and not tombstones
        if plainly and self.removal is not None:
            then = Request("DeleteItem", self.write.table, self.removal + (_COUNTS if counts else b"") + b"}")
            request = self.request(tombstones=True, shows=shows, counts=counts)
            request.then = then
            return request
        body = self.plain if self.plain is not None and plainly else self.body
        body += (_SHOWS if shows else b"") + (_COUNTS if counts else b"") + b"}"
        operation = "DeleteItem" if plainly else "PutItem"
        return Request(operation, self.write.table, body, float(math.ceil(len(body) / _UNIT)))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as entries. With ``rejections`` there is nothing to send."""

    batch: Batch
    entries: Sequence[Entry]
    rejections: Sequence[Rejection] = ()


def encode(batch: Batch, layouts: Mapping[str, Layout]) -> Encoded:
    """Every write as an entry. Deletes of ids that no item can have are left out."""
    encoders = {name: Encoder(layout, batch.replaces_same) for name, layout in layouts.items()}
    entries: list[Entry] = []
    rejections: list[Rejection] = []
    for part in batch.parts:
        for write in part.writes:
            encoder = encoders[write.table]
            if type(write) is Delete and not encoder.holds(write.id):
                continue
            try:
                entries.append(encoder.entry(write, part.source))
            except Unfit as e:
                rejections.append(Rejection(write, f"the document {e}"))
            except Malformed:
                rejections.append(Rejection(write, "the item is not valid DynamoDB JSON"))
    return Encoded(batch, () if rejections else entries, rejections)


class Encoder:
    """Makes the requests for one table. ``same``: an item with the same version is replaced, too."""

    def __init__(self, layout: Layout, same: bool = False) -> None:
        self._layout = layout
        self._stored = Stored(layout)
        version, deleted = orjson.dumps(layout.version), orjson.dumps(layout.deleted)
        self._put = b'{"TableName":' + orjson.dumps(layout.name) + b',"Item":'
        self._delete = b'{"TableName":' + orjson.dumps(layout.name) + b',"Key":'
        self._version = b"," + version + b":"
        self._deleted = b"," + deleted + b':{"BOOL":true}}'
        self._mark = b"" if layout.mark is None else b"," + orjson.dumps(layout.mark) + b':{"S":"'
        self._is_tombstone = (
            b',"ConditionExpression":"attribute_exists(#d) AND #v = :v","ExpressionAttributeNames":{"#v":'
            + version
            + b',"#d":'
            + deleted
            + b'},"ExpressionAttributeValues":{":v":'
        )
        older = b',"ConditionExpression":"attribute_not_exists(#v) OR #v %b :v' % (b"<=" if same else b"<")
        values = b'},"ExpressionAttributeValues":{'
        if layout.mark is None:
            self._guard_of = older + b'","ExpressionAttributeNames":{"#v":' + version + values
        else:
            foreign = b' OR (attribute_exists(#m) AND #m <> :m)","ExpressionAttributeNames":{"#m":'
            self._guard_of = older + foreign + orjson.dumps(layout.mark) + b',"#v":' + version + values + b'":m":{"S":"'

    def holds(self, id: DocumentId) -> bool:
        """Whether an item can have this id. Hooks may return any id; the source's own keys always fit."""
        return not self._layout.own_ids or all(
            0 < len(text.encode()) <= most for text, most in zip(id, LARGEST_KEYS, strict=True)
        )

    def entry(self, write: Write, source: str) -> Entry:
        if isinstance(write, Upsert):
            return Entry(write, source, self._upsert(write))
        return self._removal(write, source)

    def tombstone(self, id: DocumentId, version: int) -> bytes:
        """The body of a put that replaces an older document by a tombstone."""
        number = b'{"N":"%d"}' % version
        key = orjson.dumps(self._layout.keys.typed(id))
        marked = self._marked(id)
        return self._put + key[:-1] + self._version + number + marked + self._deleted + self._guard(id) + number + b"}"

    def _guard(self, id: DocumentId) -> bytes:
        """The condition of a write, up to its version."""
        return self._guard_of + (mark_of(id).encode() + b'"},":v":' if self._mark else b'":v":')

    def _marked(self, id: DocumentId) -> bytes:
        """The mark as an attribute; empty without an opposite pipeline."""
        return self._mark + mark_of(id).encode() + b'"}' if self._mark else b""

    def _upsert(self, write: Upsert) -> bytes:
        item = self._stored.item(write)
        if self._layout.pristine:
            return self._put + item
        number = b'{"N":"%d"}' % write.version
        parts = (self._put, item.rstrip()[:-1], self._version, number, self._marked(write.id))
        return b"".join((*parts, b"}", self._guard(write.id), number, b"}"))

    def _removal(self, write: Delete, source: str) -> Entry:
        key = orjson.dumps(self._layout.keys.typed(write.id))
        if self._layout.pristine:
            plain = self._delete + key
            return Entry(write, source, plain, plain)
        number = b'{"N":"%d"}}' % write.version
        plain = self._delete + key + self._guard(write.id) + number
        removal = self._delete + key + self._is_tombstone + number if self._mark else None
        return Entry(write, source, self.tombstone(write.id, write.version), plain, removal)


_LARGEST = 400 * 1024  # bytes of an item, names included


def refusals(writes: Sequence[Write], layouts: Mapping[str, Layout]) -> Iterator[Rejection]:
    """The writes that DynamoDB would refuse, as far as keys and sizes tell."""
    for write in writes:
        encoded = encode(Batch([Part("", [write])]), layouts)
        if encoded.rejections:
            yield from encoded.rejections
        elif isinstance(write, Upsert) and (reason := _reason(write, layouts[write.table])) is not None:
            yield Rejection(write, reason)


def _reason(write: Upsert, layout: Layout) -> str | None:
    item = orjson.loads(Encoder(layout).entry(write, "").body + b"}")["Item"]
    for reason in _keys(item, layout.keys):
        return reason
    size = sum(len(name.encode()) + _size(attribute) for name, attribute in item.items())
    return f"the item has {size:,} bytes, but DynamoDB stores at most {_LARGEST:,}" if size > _LARGEST else None


def _keys(item: Mapping[str, Typed], keys: KeySchema) -> Iterator[str]:
    for key, most in zip(keys.attributes, LARGEST_KEYS, strict=False):
        size = _size(item[key.name])
        if size == 0:
            yield f"the key attribute {key.name} is empty, which DynamoDB does not allow"
        elif size > most:
            yield f"the key attribute {key.name} has {size:,} bytes, but DynamoDB allows at most {most:,}"


def _size(attribute: Typed) -> int:
    """Bytes that count towards an item's size, by DynamoDB's documentation; of numbers approximately."""
    ((kind, inner),) = attribute.items()
    match kind:
        case "S":
            return len(inner.encode())
        case "B":
            return len(base64.b64decode(inner))
        case "N":
            return _number(inner)
        case "M":
            return 3 + sum(1 + len(name.encode()) + _size(value) for name, value in inner.items())
        case "L":
            return 3 + sum(1 + _size(value) for value in inner)
        case "SS" | "NS" | "BS":
            return sum(_size({kind[0]: member}) for member in inner)
    return 1


def _number(digits: Any) -> int:
    significant = str(digits).lower().partition("e")[0].lstrip("-+").replace(".", "").strip("0")
    return 1 + (len(significant) + 1) // 2
