"""A batch as statements with parameters: everything that can be done before anything is sent. Pure."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeVar

from connectors.postgres.cells import binary
from connectors.postgres.column_templates import ColumnTemplates
from connectors.postgres.columns import UNUSUAL, Body, ColumnEncoder, Projection, Reasons, UnknownColumns
from connectors.postgres.history import HistoryEncoder, days, distinct
from connectors.postgres.options import Nul
from connectors.postgres.statements import statements
from connectors.postgres.table_schema import KeyColumn, TableSchema
from connectors.postgres.text import literal
from replicator.batch import Batch, Delete, DocumentId, Past, Rejection, Upsert, Write
from replicator.items.attributes import Malformed, Typeds
from replicator.items.extraction import Image
from replicator.items.item import Amended, Item
from replicator.key import key_text

MOST_ROWS = 2000  # per statement; more is not faster
_LARGEST_KEY = 2704  # bytes of an entry in a btree index
_HISTORY_OVERHEAD = 80  # bytes of time and sequence number in the index of a history
_KEY_OVERHEAD = 8  # bytes per entry and per column, at most

T = TypeVar("T")
Row = tuple[DocumentId, Write, int]  # id, write, number of its source


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with text parameters. ``planned_once``: it has no joins, so it may be prepared and its plan kept."""

    sql: bytes
    parameters: Sequence[bytes | None] = ()
    planned_once: bool = True


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as statements. With ``rejections`` there is nothing to send.

    ``days``: times, by table, for which its history needs partitions.
    """

    batch: Batch
    statements: Sequence[Statement] = ()
    rejections: Sequence[Rejection] = ()
    days: Mapping[str, frozenset[float]] = field(default_factory=dict)


class Encoder:
    """Encodes batches for tables of known schemas."""

    def __init__(self, shapes: Mapping[str, TableSchema], nul: Nul, pipeline: str) -> None:
        self._tables = {name: TableEncoder(shape, nul) for name, shape in shapes.items()}
        self._pipeline = pipeline.encode()

    def encode(self, batch: Batch) -> Encoded:
        sources = literal([part.source for part in batch.parts])
        found: list[Statement] = []
        rejections: list[Rejection] = []
        for name, rows in sorted(self._by_table(batch).items()):
            table = self._tables[name]
            if batch.tombstones:
                found.append(table.lock)
            for chunk in _chunks(rows):
                shared = (sources, self._pipeline)
                found += table.deletes(chunk, shared, tombstones=batch.tombstones)
                found += table.upserts(chunk, shared, rejections, tombstones=batch.tombstones)
        if rejections:
            return Encoded(batch, (), rejections)
        past = _past_by_table(batch)
        for name, entries in sorted(past.items()):
            found += self._tables[name].past(entries)
        return Encoded(batch, found, days={name: days(entries) for name, entries in past.items()})

    def _by_table(self, batch: Batch) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for number, part in enumerate(batch.parts, start=1):
            for write in part.writes:
                found.setdefault(write.table, []).append((write.id, write, number))
        for rows in found.values():
            rows.sort(key=itemgetter(0))  # all sessions lock rows in this order, which rules out deadlocks
        return found


def _past_by_table(batch: Batch) -> dict[str, list[Past]]:
    found: dict[str, list[Past]] = {}
    for part in batch.parts:
        for entry in part.history:
            found.setdefault(entry.table, []).append(entry)
    return found


def _chunks(rows: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(rows), MOST_ROWS):
        yield rows[start : start + MOST_ROWS]


class TableEncoder:
    """Statements for one table."""

    def __init__(self, shape: TableSchema, nul: Nul) -> None:
        self._keys = shape.keys
        self._columns = [ColumnEncoder(column, nul) for column in shape.columns]
        self._templates = ColumnTemplates(shape.columns)
        self._unknown = UnknownColumns(shape)
        self._projection = Projection(shape.columns)
        self._statements = statements(shape)
        self._marks = shape.marks
        self._history = HistoryEncoder(shape, nul) if shape.history else None
        self._room = _LARGEST_KEY - (_HISTORY_OVERHEAD if shape.history else 0)  # for keys
        self.lock = Statement(LOCK, [shape.label.encode()])

    def deletes(self, rows: Sequence[Row], shared: tuple[bytes, bytes], *, tombstones: bool) -> Iterator[Statement]:
        wanted = [row for row in rows if not self._stores(row[1])]
        if not wanted:
            return
        reasons = _unfit_keys(
            self._keys, wanted, self._room
        )  # no row can have such a key, so there is nothing to delete
        wanted = [row for i, row in enumerate(wanted) if i not in reasons]
        text = self._statements.delete_for_good if tombstones else self._statements.delete
        parameters = [*_key_literals(self._keys, wanted), *self._bookkeeping(wanted, shared, tombstones=tombstones)]
        yield Statement(text, parameters, planned_once=False)

    def upserts(
        self, rows: Sequence[Row], shared: tuple[bytes, bytes], rejections: list[Rejection], *, tombstones: bool
    ) -> Iterator[Statement]:
        wanted = [row for row in rows if self._stores(row[1])]
        if not wanted:
            return
        reasons = _unfit_keys(self._keys, wanted, self._room)
        columns = self._body_literals(wanted, reasons)
        rejections += (Rejection(wanted[i][1], reason) for i, reason in sorted(reasons.items()))
        if reasons:
            return
        text = self._statements.upsert_unless_deleted if tombstones else self._statements.upsert
        keys = _key_literals(self._keys, wanted)
        parameters = [*keys, *columns, *self._bookkeeping(wanted, shared, tombstones=tombstones)]
        yield Statement(text, parameters, planned_once=not tombstones)

    def past(self, entries: Sequence[Past]) -> Iterator[Statement]:
        """What the batch adds to the history. Documents whose key no row can have are parked, so there are none."""
        if self._history is None:
            return
        fitting = [entry for entry in distinct(entries) if not any(_unfit(self._keys, entry.id, self._room))]
        scanned = [entry for entry in fitting if not entry.sequence]
        streamed = [entry for entry in fitting if entry.sequence]
        for text, wanted in ((self._history.scan, scanned), (self._history.stream, streamed)):
            for chunk in _chunks(wanted):
                keys = _key_literals(self._keys, [(entry.id,) for entry in chunk])
                yield Statement(
                    text, [*keys, *self._history.literals(chunk)], planned_once=text is not self._history.scan
                )

    def _stores(self, write: Write) -> bool:
        """Whether it stores a document, live or marked; others concern the one that is stored."""
        return type(write) is Upsert or (self._marks and write.last is not None)  # type: ignore[union-attr]

    def _bookkeeping(self, rows: Sequence[Row], shared: tuple[bytes, bytes], *, tombstones: bool) -> Iterator[bytes]:
        yield from _guard(rows, tombstones=tombstones)
        if self._marks:
            yield _times(rows)
        yield from _counting(rows, shared)

    def expected(self, rows: Sequence[Row]) -> tuple[list[bytes], Reasons]:
        """Keys and columns of upserts as array literals; or, instead, why some of the rows cannot be stored."""
        reasons = _unfit_keys(self._keys, rows, self._room)
        columns = self._body_literals(rows, reasons)
        return ([], reasons) if reasons else ([*_key_literals(self._keys, rows), *columns], {})

    def kept(self, bodies: Sequence[Body]) -> bytes:
        """Documents as the history would keep them, as an array literal; NULL for those that it cannot."""
        assert self._history is not None, "the table keeps no history"
        return self._history.documents(bodies)

    def keys(self, rows: Sequence[Row]) -> tuple[list[bytes], Reasons]:
        """Keys of rows as array literals; or, instead, why some of the ids cannot be keys."""
        reasons = _unfit_keys(self._keys, rows, self._room)
        return ([], reasons) if reasons else (list(_key_literals(self._keys, rows)), {})

    def _body_literals(self, rows: Sequence[Row], reasons: Reasons) -> list[bytes]:
        bodies: list[Any] = [row[1].body if type(row[1]) is Upsert else row[1].last for row in rows]  # type: ignore[union-attr]
        kinds = set(map(type, bodies))
        self._unknown.reject(bodies, kinds, reasons)
        with contextlib.suppress(*UNUSUAL):
            if kinds == {Item}:
                return self._image_literals([body.image for body in bodies], [b""] * len(self._columns))
            if kinds == {Amended} and self._columns[0].attribute is not None:
                return self._amended_literals(bodies)
        if kinds == {Item}:
            typeds = _typeds(bodies, reasons)
            return [column.items(typeds, reasons) for column in self._columns]
        whole = [_whole(i, body, reasons) for i, body in enumerate(bodies)]
        return [column.bodies(whole, reasons) for column in self._columns]

    def _amended_literals(self, bodies: Sequence[Amended]) -> list[bytes]:
        """Columns that the hook changed from its values, the others from the images.

        Raises one of ``UNUSUAL`` unless the hook changed the same attributes of all items.
        """
        changes = [body.changes for body in bodies]
        if any(map(changes[0].keys().__ne__, map(dict.keys, changes))):  # type: ignore[arg-type]
            raise KeyError
        names = frozenset(changes[0])
        made = [c.usual_bodies(changes) if c.attribute in names else b"" for c in self._columns]
        return self._image_literals([body.item.image for body in bodies], made, names)

    def _image_literals(
        self, images: Sequence[Image], made: Sequence[bytes], names: frozenset[str] = frozenset()
    ) -> list[bytes]:
        """All columns; those of the attributes in ``names`` are already in ``made``."""
        cut = self._templates(images, names)
        rest = iter(self._projection.without(names.union(cut))(images))
        columns = zip(self._columns, made, strict=True)
        return [done or cut.get(c.attribute or "") or c.usual(next(rest)) for c, done in columns]


LOCK = b"SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('replicator ' || $1::text, 0::bigint))"


def _typeds(bodies: Sequence[Any], reasons: Reasons) -> list[Typeds]:
    try:
        return [body.typed for body in bodies]
    except Malformed:
        return [_typed(i, body, reasons) for i, body in enumerate(bodies)]


def _typed(index: int, body: Item, reasons: Reasons) -> Typeds:
    try:
        return body.typed
    except Malformed:
        reasons.setdefault(index, "the image is not DynamoDB's typed JSON")
        return {}


def _whole(index: int, body: Body, reasons: Reasons) -> Body:
    try:
        return dict(body) if type(body) is Amended else body
    except Malformed:
        reasons.setdefault(index, "the image is not DynamoDB's typed JSON")
        return {}


def _guard(rows: Sequence[Row], *, tombstones: bool) -> Iterator[bytes]:
    yield literal([row[1].version for row in rows])
    if tombstones:
        yield literal([key_text(row[0]) for row in rows])


def _times(rows: Sequence[Row]) -> bytes:
    return literal([row[1].created if type(row[1]) is Delete else None for row in rows])


def _counting(rows: Sequence[Row], shared: tuple[bytes, bytes]) -> Iterator[bytes]:
    sources, pipeline = shared
    yield literal([row[2] for row in rows])
    yield literal([row[1].weight for row in rows])
    yield sources
    yield pipeline


def _key_literals(keys: Sequence[KeyColumn], rows: Sequence[tuple[DocumentId, *tuple[Any, ...]]]) -> Iterator[bytes]:
    for i, key in enumerate(keys):
        texts = [row[0][i] for row in rows]
        yield literal(texts if key.kind != "B" else [binary(base64.b64decode(text)) for text in texts])


def _unfit_keys(keys: Sequence[KeyColumn], rows: Sequence[Row], room: int = _LARGEST_KEY) -> Reasons:
    """Why ids cannot be keys of rows, by index."""
    if rows and len(rows[0][0]) != len(keys):  # they would be keys of other rows
        raise ValueError(f"an id has {len(rows[0][0])} parts, and the key of a row has {len(keys)}")
    texts = [[row[0][i] for row in rows] for i in range(len(keys))]
    if _surely_fit(texts, room):
        return {}
    reasons: Reasons = {}
    for index, row in enumerate(rows):
        for reason in _unfit(keys, row[0], room):
            reasons.setdefault(index, reason)
    return reasons


def _surely_fit(columns: Sequence[Sequence[str]], room: int) -> bool:
    most = sum(max(map(len, texts), default=0) * 4 for texts in columns) + _KEY_OVERHEAD * (len(columns) + 1)
    try:
        return most <= room and not any("\0" in "".join(texts) for texts in columns) and _all_utf8(columns)
    except UnicodeEncodeError:
        return False


def _all_utf8(columns: Iterable[Sequence[str]]) -> bool:
    return all("".join(texts).encode() is not None for texts in columns)


def fits(keys: Sequence[KeyColumn], id: DocumentId) -> bool:
    """Whether a row can have this id, or one that starts with it."""
    return not any(_unfit(keys, id))


def _unfit(keys: Sequence[KeyColumn], id: DocumentId, room: int = _LARGEST_KEY) -> Iterator[str]:
    size = _KEY_OVERHEAD
    for key, text in zip(keys, id, strict=False):  # an item's key is the first part of its documents' ids
        if "\0" in text:
            yield f"key {key.name} contains a NUL character, which Postgres cannot store"
        try:
            size += _KEY_OVERHEAD + len(text.encode() if key.kind != "B" else base64.b64decode(text))
        except UnicodeEncodeError:
            yield f"key {key.name} contains half of a surrogate pair, which is not valid text"
    if size > room:
        beside = "" if room == _LARGEST_KEY else f", and the history's leaves {room} of them to the key"
        yield f"the key has {size} bytes, but an entry of a Postgres index has at most {_LARGEST_KEY}{beside}"
