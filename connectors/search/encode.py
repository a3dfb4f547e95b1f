"""Encodes a batch as NDJSON lines of bulk requests. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, repeat

import msgspec
import orjson

from connectors.search.layout import DELETED_AT, LONGEST_TERM, WHOLE, Layout, index_id, index_ids
from connectors.search.mappings import OURS, is_ours
from replicator.batch import Batch, Delete, DocumentId, Rejection, Upsert, Write
from replicator.items.extraction import BULK_SIZE
from replicator.items.item import Amended, Item
from replicator.items.line_template import LineTemplate
from replicator.items.to_json import DocumentText, Unfit, encode_each


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A write as NDJSON lines. ``source``: the source of its part of the batch.

    For a delete, ``lines`` leave a tombstone behind, and ``plain`` does not; if it marks the document, there is no
    ``plain``.
    """

    write: Write
    source: str
    lines: bytes
    plain: bytes | None = None

    @property
    def id(self) -> str:
        """The document's id inside the index."""
        return index_id(self.write.id)

    def sent(self, *, tombstones: bool) -> bytes:
        return self.lines if self.plain is None or tombstones else self.plain

    @property
    def insisting(self) -> bytes:
        """Lines that leave a tombstone even where the engine remembers a delete of this version."""
        return insisting(self.lines)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded batch, by table. With ``rejections`` there is nothing to send."""

    batch: Batch
    tables: Mapping[str, Sequence[Entry]]
    rejections: Sequence[Rejection] = ()

    @property
    def entries(self) -> Sequence[Entry]:
        return [entry for entries in self.tables.values() for entry in entries]


def encode(batch: Batch, encoders: Mapping[str, TableEncoder]) -> Encoded:
    """Encode every write. Deletes of ids that cannot exist are left out."""
    tables: dict[str, list[Entry]] = {}
    rejections: list[Rejection] = []
    for part in batch.parts:
        for table, writes in _by_table(part.writes).items():
            tables.setdefault(table, []).extend(encoders[table].entries(writes, part.source, rejections))
    nonempty = {table: entries for table, entries in tables.items() if entries}
    return Encoded(batch, {} if rejections else nonempty, rejections)


def _by_table(writes: Sequence[Write]) -> Mapping[str, Sequence[Write]]:
    if len(tables := {write.table for write in writes}) == 1:  # nearly always
        return dict.fromkeys(tables, writes)
    by_table: dict[str, list[Write]] = {}
    for write in writes:
        by_table.setdefault(write.table, []).append(write)
    return by_table


_Values = tuple[bytes, ...]
_Made = tuple[_Values | None, bytes | None]
"""The key values in a document's lines, and the lines."""


class TableEncoder:
    """Encodes writes to one index. Reuse it: it caches templates for the shapes of items it has seen."""

    def __init__(self, layout: Layout) -> None:
        self._whole = layout.whole
        self._added = layout.added
        self._parts = len(layout.parts)
        self._layout = layout
        self._routed_by = layout.routed_by
        self._own_ids = layout.own_ids
        self._in_action = 2 if layout.routed_by is None else 3
        self._body = DocumentText()
        routing = b"" if layout.routed_by is None else b',"routing":%b'
        target = b'{"_id":%b,"version":%b,"version_type":"external"' + routing + b"}}\n"
        ours = b'{"%b":{"version":%%b' % OURS.encode() + b"".join(b',"%b":%%b' % part.encode() for part in layout.parts)
        self._delete = b'{"delete":' + target
        self._tombstone = b'{"index":' + target + ours + b',"deleted":true}}\n'
        self._upsert = b'{"index":' + target + ours + b"}%b\n"
        self._mark = b'{"index":' + target + ours + b',"%b":%%b}%%b\n' % DELETED_AT.encode()
        self._marks = layout.marks
        fields = self._upsert.removesuffix(b"%b\n") + (b',"%b":{' % WHOLE.encode() if layout.whole else b",")
        self._frame = LineTemplate(fields, b"}}\n" if layout.whole else b"}\n", None if layout.whole else OURS)

    def entries(self, writes: Sequence[Write], source: str, rejections: list[Rejection]) -> Iterator[Entry]:
        """Yield entries for the writes that an index can hold; add the others to ``rejections``."""
        for start in range(0, len(writes), BULK_SIZE):
            some = writes[start : start + BULK_SIZE]
            upserts = [write for write in some if type(write) is Upsert]
            keys = self._keys(upserts)
            lines = self._body.framed(self._frame, keys, [self._document(w) for w in upserts]) if keys else None
            if lines is not None and len(lines) == len(some):
                yield from map(Entry, some, repeat(source), lines)
            else:
                made = zip(keys or repeat(None), lines or repeat(None), strict=False)
                yield from self._one_by_one(some, made, source, rejections)

    def _one_by_one(
        self, writes: Sequence[Write], made: Iterator[_Made], source: str, rejections: list[Rejection]
    ) -> Iterator[Entry]:
        """``made``: what is already encoded of each upsert."""
        for write in writes:
            try:
                if isinstance(write, Upsert):
                    key, line = next(made)
                    yield Entry(write, source, self._stored(write, key) if line is None else line)
                elif (entry := self._removed(write, source)) is not None:
                    yield entry
            except Unfit as e:
                rejections.append(Rejection(write, str(e)))

    def _stored(self, write: Upsert, key: _Values | None) -> bytes:
        """Raises Unfit, with a sentence, for a document that no search engine can hold."""
        try:
            key = self._key(write) if key is None else key
        except (UnicodeEncodeError, TypeError):
            raise Unfit("the key contains half of a surrogate pair, which is not valid text") from None
        if self._own_ids and (length := _length(write.id[1])) > LONGEST_TERM:
            raise Unfit(f"its id has {length:,} characters, and an index can find no more than {LONGEST_TERM:,}")
        return self._upsert % (*key, self._rest(write))

    def _removed(self, write: Delete, source: str) -> Entry | None:
        """A delete; one that marks the last document stores it. Raises Unfit as ``_stored`` does."""
        try:
            key = self._key(write)
        except (UnicodeEncodeError, TypeError):
            return None
        if self._marks and write.last is not None and write.created is not None:
            last = Upsert(write.table, write.id, write.last, write.version, write.item)
            return Entry(write, source, self._mark % (*key, _text(marked_time(write.created)), self._rest(last)))
        return Entry(write, source, self._tombstone % key, self._delete % key[: self._in_action])

    def _key(self, write: Write) -> _Values:
        """Values for the action line (id, version, routing) and for our own object (version, key parts)."""
        id, version = _text(index_id(write.id)), b"%d" % write.version
        if self._routed_by is None:
            return (id, version, version, *map(_text, write.id))
        routing = _text(self._layout.shortened(write.id[self._routed_by]))
        return (id, version, routing, version, *map(_text, write.id))

    def _keys(self, writes: Sequence[Write]) -> Sequence[_Values] | None:
        """``_key`` of each; None if they must be encoded one by one."""
        ids = [write.id for write in writes]
        if self._own_ids and any(len(id[1]) * 2 > LONGEST_TERM for id in ids):
            return None
        try:
            texts = encode_each([*index_ids(ids), *chain.from_iterable(ids)])
        except (UnicodeEncodeError, TypeError):
            return None
        versions = [b"%d" % write.version for write in writes]
        parts = [texts[len(ids) + i :: self._parts] for i in range(self._parts)]
        routing = () if self._routed_by is None else (self._routings(ids, parts[self._routed_by]),)
        return list(zip(texts[: len(ids)], versions, *routing, versions, *parts, strict=True))

    def _routings(self, ids: Sequence[DocumentId], parts: Sequence[bytes]) -> Sequence[bytes]:
        """The routing of each document. ``parts``: those that it is taken from, encoded."""
        at = self._routed_by
        assert at is not None
        return encode_each([self._layout.shortened(id[at]) for id in ids]) if self._layout.routed_before else parts

    def _document(self, write: Upsert) -> Mapping[str, object]:
        """The document, with the key if it must have it: an item has it, and what a hook returned may lack it."""
        body = write.body
        if self._added is None or type(body) is Item or type(body) is Amended:
            return body
        missing = {name: value for name, value in self._added.values(write.id).items() if name not in body}
        return {**missing, **body} if missing else body

    def _rest(self, write: Upsert) -> bytes:
        """The rest of the document line, after our own object."""
        try:
            body = self._body(self._document(write))
        except Unfit as e:
            raise Unfit(f"the document {e}") from None
        if self._whole:
            return _WHOLE % body
        if _may_be_ours(body) and any(map(is_ours, orjson.loads(body))):
            raise Unfit(
                f"the document has a field named {OURS} or {OURS}.…, which is where replicator keeps version and key"
            )
        return b"," + body[1:] if len(body) > 2 else b"}"


def marked_time(at: float) -> str:
    """The time of a deletion as its field has it: to the millisecond, like a date of the engine."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def insisting(lines: bytes) -> bytes:
    """The same write, accepted even where the engine has, or remembers, this very version."""
    return lines.replace(b'"version_type":"external"', b'"version_type":"external_gte"', 1)


_text = orjson.dumps


def _length(text: str) -> int:
    """In the engine's characters, of which one beyond U+FFFF takes two."""
    return len(text.encode("utf-16-le")) // 2


_OURS = b'"%b' % OURS.encode()
_WHOLE = b',"%b":%%b}' % WHOLE.encode()


def _may_be_ours(body: bytes) -> bool:
    """Whether it may contain one of our names, perhaps written with escapes; rarely true."""
    return _OURS in body or b"\\u" in body


def cut(sizes: Sequence[int], most_bytes: int, most: int) -> list[slice]:
    """Split a sequence of items of these sizes into slices within both limits; a larger item gets its own."""
    if sizes and len(sizes) <= most and sum(sizes) <= most_bytes:  # nearly always
        return [slice(0, len(sizes))]
    slices: list[slice] = []
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (total + size > most_bytes or i - start >= most):
            slices.append(slice(start, i))
            start, total = i, 0
        total += size
    return [*slices, slice(start, len(sizes))] if sizes else []
