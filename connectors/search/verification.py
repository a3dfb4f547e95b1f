"""Compares documents of an index with expected ones, and repairs them by their external versions.

Documents are read by id, which sees every acknowledged write whatever was refreshed. The engine returns a document's
source as it was sent, so that equal documents are equal bytes; others are compared field by field, with exact numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec
import orjson
from msgspec import structs

from connectors.search import searches
from connectors.search.bulk import Bulk
from connectors.search.connection import Connection
from connectors.search.encode import TableEncoder, insisting
from connectors.search.errors import READING, failure
from connectors.search.layout import LIVE, WHOLE, Layout, index_id
from connectors.search.mappings import OURS
from connectors.search.responses import worst
from replicator.batch import Delete, DocumentId, Rejection, Upsert, Write
from replicator.errors import TransientError
from replicator.target.verification import CHANGED, Comparison, CursorExpired, Walked

_PIECE = 300  # documents that are read at once, with their sources
_WALK_PIECE = 2000  # ids
_KEEP_ALIVE = "5m"  # of a walk, between two pieces; the engine frees it afterwards


class _Document(msgspec.Struct):
    found: bool = False
    version: int | None = msgspec.field(name="_version", default=None)
    source: msgspec.Raw = msgspec.field(name="_source", default=msgspec.Raw(b"{}"))
    error: dict[str, Any] | None = None


class _Documents(msgspec.Struct):
    docs: list[_Document]


class _Own(msgspec.Struct):
    deleted: bool = False


class _Source(msgspec.Struct):
    ours: _Own = msgspec.field(name=OURS, default_factory=_Own)


_decode = msgspec.json.Decoder(_Documents)
_own = msgspec.json.Decoder(_Source)


@dataclass(frozen=True, slots=True)
class IndexVerification:
    """Comparison and repair of one index."""

    connection: Connection
    bulk: Bulk
    layout: Layout
    encoder: TableEncoder

    def compare(self, expected: Sequence[Upsert]) -> list[Comparison]:
        found: list[Comparison] = []
        for start in range(0, len(expected), _PIECE):
            found += self._compared(expected[start : start + _PIECE])
        return found

    def _compared(self, expected: Sequence[Upsert]) -> Iterator[Comparison]:
        documents = self._read([write.id for write in expected])
        writes = [
            write if document is None else structs.replace(write, version=document[0])
            for write, document in zip(expected, documents, strict=True)
        ]
        rejections: list[Rejection] = []
        lines = {entry.write.id: entry.lines for entry in self.encoder.entries(writes, "", rejections)}
        refused = {rejection.write.id: rejection.reason for rejection in rejections}
        for write, document in zip(writes, documents, strict=True):
            version = None if document is None else document[0]
            if write.id in refused:
                yield Comparison(version, refused=refused[write.id])
            elif document is None:
                yield Comparison(None)
            else:
                yield Comparison(version, self._differing(document[1], lines[write.id].split(b"\n", 2)[1]))

    def _differing(self, stored: bytes, expected: bytes) -> tuple[str, ...]:
        """The names of the fields that differ."""
        if stored == expected:
            return ()
        was, wanted = _exact(stored), _exact(expected)
        if self.layout.whole:
            was, wanted = _flat(was), _flat(wanted)
        return tuple(n for n in sorted(was.keys() | wanted.keys()) if was.get(n, ...) != wanted.get(n, ...))

    def versions(self, ids: Sequence[DocumentId]) -> list[int | None]:
        found: list[int | None] = []
        for start in range(0, len(ids), _PIECE):
            found += [None if d is None else d[0] for d in self._read(ids[start : start + _PIECE])]
        return found

    def walk(self, cursor: str | None, within: DocumentId) -> Walked:
        """By the scroll API, which both engines have: a snapshot of the ids, in no order."""
        if cursor is None:
            searches.refresh(self.connection, self.layout)
            plain = searches.undisturbed(self.connection, searches.settings(self.connection, self.layout))
            path = f"/{quote(self.layout.index, safe='')}/_search?{searches.WHOLE}&scroll={_KEEP_ALIVE}{plain}"
            filters = [{"term": {f"{OURS}.{p}": text}} for p, text in zip(self.layout.parts, within, strict=False)]
            query = {"bool": {"filter": [LIVE, *filters]}}
            wanted = {"size": _WALK_PIECE, "_source": [OURS], "sort": ["_doc"], "query": query}
        else:
            path, wanted = "/_search/scroll", {"scroll": _KEEP_ALIVE, "scroll_id": cursor}
        response = self.connection.request("POST", path, orjson.dumps(wanted))
        if cursor is not None and response.status == 404:
            raise CursorExpired
        found = response.json
        if response.status >= 300 or not isinstance(found, dict) or found.get("_shards", {}).get("failed", 0):
            raise failure(response, self.connection.server, "walking through the index")
        ids = [_id(hit["_source"][OURS], self.layout) for hit in found["hits"]["hits"]]
        if ids:
            return Walked(ids, found["_scroll_id"])
        return Walked((), None)

    def replace(self, writes: Sequence[Upsert]) -> list[str]:
        rejections: list[Rejection] = []
        lines = {entry.write.id: entry.lines for entry in self.encoder.entries(writes, "", rejections)}
        refused = {rejection.write.id: rejection.reason for rejection in rejections}
        done = self._changed([write for write in writes if write.id not in refused], lines)
        return [refused.get(write.id) or done.get(write.id, CHANGED) for write in writes]

    def remove(self, writes: Sequence[Delete]) -> list[str]:
        lines = {entry.write.id: entry.lines for entry in self.encoder.entries(writes, "", [])}
        done = self._changed(writes, lines)
        return [done.get(write.id, CHANGED) for write in writes]

    def _changed(self, writes: Sequence[Write], lines: Mapping[DocumentId, bytes]) -> dict[DocumentId, str]:
        """Send lines at the versions that are stored now; the engine turns away those that are newer by then."""
        there = self.versions([write.id for write in writes])
        same = [write for write, version in zip(writes, there, strict=True) if version == write.version]
        verdicts = self.bulk.store(self.layout, [insisting(lines[write.id]) for write in same])
        if (error := worst(verdicts)) is not None:
            raise error
        results = {"stored": "", "conflict": CHANGED}
        return {w.id: results.get(v.kind, v.reason) for w, v in zip(same, verdicts, strict=True)}

    def _read(self, ids: Sequence[DocumentId]) -> list[tuple[int, bytes] | None]:
        """Version and source of each document; None if it is absent, or a tombstone."""
        known = {id: text for id in ids if (text := _text(id)) is not None}
        if not known:
            return [None] * len(ids)
        by = self.layout.routed_by
        wanted = [{"_id": text, **({} if by is None else {"routing": id[by]})} for id, text in known.items()]
        # Without filter_path: the engine would write the sources anew, with rounded numbers.
        path = f"/{quote(self.layout.index, safe='')}/_mget"
        response = self.connection.request("POST", path, orjson.dumps({"docs": wanted}))
        if response.status != 200:
            raise failure(response, self.connection.server, READING)
        try:
            documents = _decode.decode(response.body).docs
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise TransientError(f"{self.connection.server}: the response to {READING} is not complete") from e
        if len(documents) != len(wanted) or any(d.error is not None for d in documents):
            raise TransientError(f"{self.connection.server}: a shard of {self.layout.index} fails {READING}")
        found = dict(zip(known, map(_live, documents), strict=True))
        return [found.get(id) for id in ids]


def _live(document: _Document) -> tuple[int, bytes] | None:
    if not document.found or document.version is None or _own.decode(document.source).ours.deleted:
        return None
    return document.version, bytes(document.source)


def _text(id: DocumentId) -> str | None:
    try:
        return index_id(id) or None  # the engines have no empty id
    except UnicodeEncodeError:
        return None


def _id(own: Mapping[str, str], layout: Layout) -> DocumentId:
    return tuple(own[part] for part in layout.parts)


def _exact(source: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(source, parse_float=Decimal)
    return found


def _flat(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the whole document, beside our own."""
    return {**source.get(WHOLE, {}), **({OURS: source[OURS]} if OURS in source else {})}
