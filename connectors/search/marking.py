"""``deletes: mark``: documents read as they are stored, and the lines that mark them as deleted.

A write with an external version replaces the whole document, so a mark contains the document. Where no image of the
stream tells what it was last, it is read first. That is safe: the mark has the version of the delete, which any write
in between must exceed to stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import orjson

from connectors.search.connection import Connection
from connectors.search.encode import marked_time
from connectors.search.errors import READING, failure
from connectors.search.layout import DELETED_AT, Layout, index_id
from connectors.search.mappings import OURS, own_fields
from replicator.batch import DocumentId
from replicator.errors import TransientError

Address = tuple[str, str | None]
"""A document's id inside its index, and its routing."""

PIECE = 300  # documents that are read at once, with their sources


class Stored(msgspec.Struct, frozen=True):
    """A document that is no tombstone: its version, its source as it was sent, and when it was deleted, if it was."""

    version: int
    source: bytes
    deleted_at: str | None = None


class _Document(msgspec.Struct):
    found: bool = False
    version: int | None = msgspec.field(name="_version", default=None)
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))
    error: dict[str, Any] | None = None


class _Documents(msgspec.Struct):
    docs: list[_Document]


class _Own(msgspec.Struct):
    deleted: bool = False
    deleted_at: str | None = None


class _Source(msgspec.Struct):
    ours: _Own = msgspec.field(name=OURS, default_factory=_Own)


_decode = msgspec.json.Decoder(_Documents)
_own = msgspec.json.Decoder(_Source)
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read(connection: Connection, layout: Layout, ids: Sequence[DocumentId]) -> list[Stored | None]:
    """The documents with these ids, live or marked; None where there is none, or a tombstone."""
    addresses = [_address(layout, id) for id in ids]
    found = iter(read_all(connection, layout, [one for one in addresses if one is not None]))
    return [None if one is None else next(found) for one in addresses]


def read_all(connection: Connection, layout: Layout, addresses: Sequence[Address]) -> list[Stored | None]:
    """The same of documents that may be another tool's."""
    pieces = [addresses[start : start + PIECE] for start in range(0, len(addresses), PIECE)]
    return [one for piece in pieces for one in _read(connection, layout, piece)]


def _read(connection: Connection, layout: Layout, addresses: Sequence[Address]) -> Iterator[Stored | None]:
    wanted = [{"_id": id, **({} if routing is None else {"routing": routing})} for id, routing in addresses]
    # Without filter_path: the engine would re-serialize the sources, with rounded numbers.
    response = connection.request("POST", f"/{quote(layout.index, safe='')}/_mget", orjson.dumps({"docs": wanted}))
    if response.status != 200:
        raise failure(response, connection.server, READING)
    try:
        documents = _decode.decode(response.body).docs
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise TransientError(f"{connection.server}: the response to {READING} is not complete") from e
    if len(documents) != len(wanted) or any(d.error is not None for d in documents):
        raise TransientError(f"{connection.server}: a shard of {layout.index} fails {READING}")
    return map(_stored, documents)


def _stored(document: _Document) -> Stored | None:
    if not document.found or document.version is None:
        return None
    own = _ours(document.source)
    return None if own.deleted else Stored(document.version, bytes(document.source), own.deleted_at)


def _ours(source: msgspec.Raw) -> _Own:
    """Replicator's own fields. In another tool's document, the field of this name may be anything."""
    try:
        return _own.decode(source).ours
    except msgspec.ValidationError:
        return _Own()


def _address(layout: Layout, id: DocumentId) -> Address | None:
    try:
        text = index_id(id)
    except UnicodeEncodeError:
        return None
    return (text, layout.routing(id)) if text else None  # no id is empty


def mark(layout: Layout, id: DocumentId, version: int, stored: Stored, at: float) -> bytes:
    """The lines that mark a document at this version. One that is marked already keeps its time."""
    address = _address(layout, id)
    assert address is not None, "it was read"
    return mark_at(address, version, stored, at)


def mark_at(address: Address, version: int, stored: Stored, at: float) -> bytes:
    id, routing = address
    routed = {} if routing is None else {"routing": routing}
    action = {"_id": id, "version": version, "version_type": "external", **routed}
    fields = _fields.decode(stored.source)
    own = own_fields(orjson.loads(bytes(fields.pop(OURS, msgspec.Raw(b"{}")))))
    own = {**own, "version": version, DELETED_AT: stored.deleted_at or marked_time(at)}
    document = {OURS: msgspec.Raw(orjson.dumps(own)), **fields}
    return b'{"index":%b}\n%b\n' % (orjson.dumps(action), msgspec.json.encode(document))
