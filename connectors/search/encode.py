"""A batch as lines of bulk requests: everything that can be done before the server is asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import orjson

from connectors.search.ids import index_id
from connectors.search.layout import OURS, WHOLE, Layout
from replicator.batch import Batch, Delete, Rejection, Upsert, Write
from replicator.json_text import DocumentText, Unfit


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


def encode(batch: Batch, encoders: Mapping[str, TableEncoder]) -> Encoded:
    """Every write as lines. A delete of an id that cannot exist is left out: nothing is there."""
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
    """Lines for one index. Kept as long as the index is written, because it learns which forms items have."""

    def __init__(self, layout: Layout) -> None:
        self._whole = layout.whole
        self._routed_by = layout.routed_by
        self._body = DocumentText()
        routing = b"" if layout.routed_by is None else b',"routing":%b'
        target = b'{"_id":%b,"version":%d,"version_type":"external"' + routing + b"}}\n"
        ours = b'{"%b":{"version":%%d' % OURS.encode() + b"".join(b',"%b":%%b' % part.encode() for part in layout.parts)
        self._delete = b'{"delete":' + target
        self._tombstone = b'{"index":' + target + ours + b',"deleted":true}}\n'
        self._upsert = b'{"index":' + target + ours + b"}%b\n"

    def entry(self, write: Write, source: str) -> Entry | None:
        """Unfit, with a sentence, for a document that no search engine can hold."""
        version = write.version
        try:
            id = index_id(write.id)
            target, ours = (_text(id), version, *self._routing(write)), (version, *map(_text, write.id))
        except (UnicodeEncodeError, TypeError):
            if isinstance(write, Delete):
                return None
            raise Unfit("the key contains half of a surrogate pair, which is no text") from None
        if type(write) is Upsert:
            return Entry(write, source, id, self._upsert % (*target, *ours, self._rest(write)))
        return Entry(write, source, id, self._tombstone % (*target, *ours), self._delete % target)

    def _routing(self, write: Write) -> Sequence[bytes]:
        return () if self._routed_by is None else (_text(write.id[self._routed_by]),)

    def _rest(self, write: Upsert) -> bytes:
        """The rest of the line, after our own object."""
        try:
            body = self._body(write.body)
        except Unfit as e:
            raise Unfit(f"the document {e}") from None
        if self._whole:
            return _WHOLE % body
        if _OURS in body and OURS in write.body:
            raise Unfit(f"the document has a field named {OURS}, which is where replicator keeps version and key")
        return b"," + body[1:] if body != b"{}" else b"}"


_text = orjson.dumps
_OURS = b'"%b":' % OURS.encode()
_WHOLE = b',"%b":%%b}' % WHOLE.encode()


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
