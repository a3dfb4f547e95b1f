"""A batch as lines of bulk requests: everything that can be done before the server is asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import orjson

from connectors.search.ids import index_id
from connectors.search.layout import OURS, WHOLE, Layout
from replicator import json_text
from replicator.batch import Batch, Delete, DocumentId, Rejection, Upsert, Write
from replicator.json_text import Unfit


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A write as lines of NDJSON. ``source``: the part of the batch that it came from.

    ``plain``: for a delete, the line that leaves no tombstone behind; ``lines`` are those that leave one.
    """

    write: Write
    source: str
    id: str
    lines: bytes
    plain: bytes | None = None

    def sent(self, *, tombstones: bool) -> bytes:
        return self.lines if self.plain is None or tombstones else self.plain


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch in the engine's form, by table. With ``rejections`` there is nothing to send."""

    batch: Batch
    tables: Mapping[str, Sequence[Entry]]
    rejections: Sequence[Rejection] = ()


def encode(batch: Batch, layouts: Mapping[str, Layout]) -> Encoded:
    """Every write as lines. A delete of an id that cannot exist is left out: nothing is there."""
    encoders = {name: TableEncoder(layout) for name, layout in layouts.items()}
    tables: dict[str, list[Entry]] = {}
    rejections: list[Rejection] = []
    for part in batch.parts:
        for write in part.writes:
            try:
                entry = encoders[write.table].entry(write, part.source)
            except Unfit as e:
                rejections.append(Rejection(write, str(e)))
            else:
                if entry is not None:
                    tables.setdefault(write.table, []).append(entry)
    return Encoded(batch, {} if rejections else tables, rejections)


class TableEncoder:
    """Lines for one index."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._parts = [f'"{part}":' for part in layout.parts]

    def entry(self, write: Write, source: str) -> Entry | None:
        """Unfit, with a sentence, for a document that no search engine can hold."""
        try:
            id = index_id(write.id)
            target, ours = self._target(write, id), self._ours(write)
        except (UnicodeEncodeError, TypeError):
            if isinstance(write, Delete):
                return None
            raise Unfit("the key contains half of a surrogate pair, which is no text") from None
        if isinstance(write, Delete):
            tombstone = f'{{"index":{target}\n{{"{OURS}":{{{ours},"deleted":true}}}}\n'
            return Entry(write, source, id, tombstone.encode(), f'{{"delete":{target}\n'.encode())
        text = f'{{"index":{target}\n{{"{OURS}":{{{ours}}}{self._body(write)}\n'
        return Entry(write, source, id, text.encode())

    def _target(self, write: Write, id: str) -> str:
        routing = "" if self._layout.routed_by is None else f',"routing":{_text(write.id[self._layout.routed_by])}'
        return f'{{"_id":{_text(id)},"version":{write.version},"version_type":"external"{routing}}}}}'

    def _ours(self, write: Write) -> str:
        return f'"version":{write.version},{self._key(write.id)}'

    def _key(self, id: DocumentId) -> str:
        return ",".join([name + _text(part) for name, part in zip(self._parts, id, strict=True)])

    def _body(self, write: Upsert) -> str:
        """The rest of the line, after our own object."""
        try:
            body = json_text.of_document(write.body)
        except Unfit as e:
            raise Unfit(f"the document {e}") from None
        if self._layout.whole:
            return f',"{WHOLE}":{body}}}'
        if f'"{OURS}":' in body and OURS in write.body:
            raise Unfit(f"the document has a field named {OURS}, which is where replicator keeps version and key")
        return f",{body[1:]}" if body != "{}" else "}"


def _text(value: str) -> str:
    return orjson.dumps(value).decode()


def cut(sizes: Sequence[int], most_bytes: int, most: int) -> list[slice]:
    """Where to cut a row of things of these sizes, so that each piece keeps within both limits (or is alone)."""
    found: list[slice] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (total + size > most_bytes or i - start >= most):
            found.append(slice(start, i))
            start, total = i, 0
        total += size
    return [*found, slice(start, len(sizes))] if sizes else []
