"""Compares documents of an index with expected ones, and repairs them by their external versions.

Documents are read by id, which sees every acknowledged write whatever was refreshed. The engine returns a document's
source as it was sent, so that equal documents are equal bytes; others are compared field by field, with exact numbers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from msgspec import structs

from connectors.search import ingest, marking
from connectors.search.bulk import Bulk
from connectors.search.connection import Connection
from connectors.search.encode import TableEncoder, insisting
from connectors.search.layout import DELETED_AT, WHOLE, Layout
from connectors.search.mappings import OURS
from connectors.search.marking import Stored
from connectors.search.responses import worst
from connectors.search.walk import Walk
from replicator.batch import Delete, DocumentId, Rejection, Upsert, Write
from replicator.target.verification import CHANGED, Comparison, Walked


@dataclass(frozen=True, slots=True)
class IndexVerification:
    """Comparison and repair of one index."""

    connection: Connection
    bulk: Bulk
    layout: Layout
    encoder: TableEncoder
    _walk: Walk = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_walk", Walk(self.connection, self.layout))

    def compare(self, expected: Sequence[Upsert]) -> list[Comparison]:
        found: list[Comparison] = []
        for start in range(0, len(expected), marking.PIECE):
            found += self._compared(expected[start : start + marking.PIECE])
        return found

    def _compared(self, expected: Sequence[Upsert]) -> Iterator[Comparison]:
        documents = self._read([write.id for write in expected])
        writes = [
            write if document is None else structs.replace(write, version=document.version)
            for write, document in zip(expected, documents, strict=True)
        ]
        lines, refused = self._lines(writes)
        for write, document in zip(writes, documents, strict=True):
            version = None if document is None else document.version
            if write.id in refused:
                yield Comparison(version, refused=refused[write.id])
            elif document is None:
                yield Comparison(None)
            elif self._is_marked(document):
                yield Comparison(version, (f"{OURS}.{DELETED_AT}",))
            else:
                yield Comparison(version, self._differing(document.source, lines[write.id].split(b"\n", 2)[1]))

    def _lines(self, writes: Sequence[Upsert]) -> tuple[dict[DocumentId, bytes], dict[DocumentId, str]]:
        """The lines that store each document, and why others cannot be stored."""
        rejections: list[Rejection] = []
        entries, dropped = ingest.made(self.connection, self.layout, list(self.encoder.entries(writes, "", rejections)))
        lines = {entry.write.id: entry.lines for entry in entries}
        return lines, {one.write.id: one.reason for one in (*rejections, *dropped)}

    def _differing(self, stored: bytes, expected: bytes) -> tuple[str, ...]:
        """The names of the fields that differ."""
        if stored == expected:
            return ()
        was, wanted = _exact(stored), _exact(expected)
        if self.layout.whole:
            was, wanted = _flat(was), _flat(wanted)
        return tuple(n for n in sorted(was.keys() | wanted.keys()) if was.get(n, ...) != wanted.get(n, ...))

    def versions(self, ids: Sequence[DocumentId]) -> list[int | None]:
        return [None if d is None or self._is_marked(d) else d.version for d in self._read(ids)]

    def walk(self, cursor: str | None, within: DocumentId) -> Walked:
        return self._walk.walk(cursor, within)

    def replace(self, writes: Sequence[Upsert]) -> list[str]:
        lines, refused = self._lines(writes)
        there = {write.id: d.version for write, d in self._stored(writes) if d is not None}
        done = self._changed([write for write in writes if write.id not in refused], lines, there)
        return [refused.get(write.id) or done.get(write.id, CHANGED) for write in writes]

    def remove(self, writes: Sequence[Delete]) -> list[str]:
        lines = {entry.write.id: entry.lines for entry in self.encoder.entries(writes, "", [])}
        live = {write.id: d for write, d in self._stored(writes) if d is not None and not self._is_marked(d)}
        if self.layout.marks:
            now, of = time.time(), self.layout
            lines |= {w.id: marking.mark(of, w.id, w.version, live[w.id], now) for w in writes if w.id in live}
        done = self._changed(writes, lines, {id: d.version for id, d in live.items()})
        return [done.get(write.id, CHANGED) for write in writes]

    def _changed(
        self, writes: Sequence[Write], lines: Mapping[DocumentId, bytes], there: Mapping[DocumentId, int]
    ) -> dict[DocumentId, str]:
        """Send lines at the versions that are ``there``; the engine turns away those that are newer by then."""
        same = [write for write in writes if there.get(write.id) == write.version]
        verdicts = self.bulk.store(self.layout, [insisting(lines[write.id]) for write in same])
        if (error := worst(verdicts)) is not None:
            raise error
        results = {"stored": "", "conflict": CHANGED}
        return {w.id: results.get(v.kind, v.reason) for w, v in zip(same, verdicts, strict=True)}

    def _read(self, ids: Sequence[DocumentId]) -> list[Stored | None]:
        return marking.read(self.connection, self.layout, ids)

    def _stored(self, writes: Sequence[Write]) -> Iterator[tuple[Write, Stored | None]]:
        return zip(writes, self._read([write.id for write in writes]), strict=True)

    def _is_marked(self, document: Stored) -> bool:
        return self.layout.marks and document.deleted_at is not None


def _exact(source: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(source, parse_float=Decimal)
    return found


def _flat(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the whole document, beside our own."""
    return {**source.get(WHOLE, {}), **({OURS: source[OURS]} if OURS in source else {})}
