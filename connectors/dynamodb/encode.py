"""A batch as requests: everything that can be done before the table is asked. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import orjson

from connectors.dynamodb.documents import Stored
from connectors.dynamodb.layout import Layout
from connectors.dynamodb.request import Request
from replicator.batch import Batch, Delete, DocumentId, Rejection, Upsert, Write
from replicator.items.attributes import Malformed
from replicator.items.to_json import Unfit

_SHOWS = b',"ReturnValuesOnConditionCheckFailure":"ALL_OLD"'
_COUNTS = b',"ReturnConsumedCapacity":"TOTAL"'
_UNIT = 1024  # bytes
LARGEST_KEYS = (2048, 1024)  # bytes of a partition key, of a sort key


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A write as a request's body but for its end. ``source``: the part of the batch that it came from.

    ``plain``: for a delete, the body of one that leaves no tombstone; ``body`` then puts one.
    """

    write: Write
    source: str
    body: bytes
    plain: bytes | None = None

    def request(self, *, tombstones: bool, shows: bool, counts: bool) -> Request:
        """``shows``: a refused condition is answered with the item that is there; ``counts``: with what it cost."""
        plainly = self.plain is not None and not tombstones
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
    """Every write as an entry. A delete of an id that cannot exist is left out: nothing is there."""
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
    """Makes the requests for one table. ``same``: what is there at the same version is replaced, too."""

    def __init__(self, layout: Layout, same: bool = False) -> None:
        self._layout = layout
        self._stored = Stored(layout)
        version, deleted = orjson.dumps(layout.version), orjson.dumps(layout.deleted)
        self._put = b'{"TableName":' + orjson.dumps(layout.name) + b',"Item":'
        self._delete = b'{"TableName":' + orjson.dumps(layout.name) + b',"Key":'
        self._version = b"," + version + b":"
        self._deleted = b"," + deleted + b':{"BOOL":true}}'
        self._guard = (
            b',"ConditionExpression":"attribute_not_exists(#v) OR #v %b :v","ExpressionAttributeNames":{"#v":'
            % (b"<=" if same else b"<")
            + version
            + b'},"ExpressionAttributeValues":{":v":'
        )

    def holds(self, id: DocumentId) -> bool:
        """Whether anything can be stored under an id: a hook may give any, the source's own keys fit."""
        return not self._layout.own_ids or all(
            0 < len(text.encode()) <= most for text, most in zip(id, LARGEST_KEYS, strict=True)
        )

    def entry(self, write: Write, source: str) -> Entry:
        if isinstance(write, Upsert):
            return Entry(write, source, self._upsert(write))
        return self._removal(write, source)

    def tombstone(self, id: DocumentId, version: int) -> bytes:
        """The body of a put that leaves a tombstone where an older document is."""
        number = b'{"N":"%d"}' % version
        key = orjson.dumps(self._layout.keys.typed(id))
        return self._put + key[:-1] + self._version + number + self._deleted + self._guard + number + b"}"

    def _upsert(self, write: Upsert) -> bytes:
        item = self._stored.item(write)
        if self._layout.pristine:
            return self._put + item
        number = b'{"N":"%d"}' % write.version
        return b"".join((self._put, item.rstrip()[:-1], self._version, number, b"}", self._guard, number, b"}"))

    def _removal(self, write: Delete, source: str) -> Entry:
        key = orjson.dumps(self._layout.keys.typed(write.id))
        if self._layout.pristine:
            plain = self._delete + key
            return Entry(write, source, plain, plain)
        plain = self._delete + key + self._guard + b'{"N":"%d"}}' % write.version
        return Entry(write, source, self.tombstone(write.id, write.version), plain)
