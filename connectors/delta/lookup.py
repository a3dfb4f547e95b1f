"""Looks up rows by the ids of documents.

The client reads the columns, and pyarrow compares them with the ids. A query that lists thousands of ids takes five
times as long, holds the interpreter's lock while it is parsed, and from some 20,000 on overflows the parser's stack.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

from connectors.delta.schema import VERSION, TableSchema
from connectors.delta.stored_table import ids_and_versions, quoted, rows
from replicator.batch import DocumentId

_ROWS = 100_000  # to compare at once: each time, pyarrow hashes all ids
_BYTES = 16 << 20
_MOST_PARTITIONS = 100  # to name in a condition

_LITERALS = ("string", "bigint", "boolean", "date")  # types whose literals are surely equal to stored values

Partition = tuple[Any, ...]
"""The values of those partition columns of a table that conditions can be about."""


@dataclass(frozen=True, slots=True)
class Located:
    """The versions of documents that are in a table, and the partitions that their rows are in."""

    versions: dict[DocumentId, int] = field(default_factory=dict)
    partitions: set[Partition] = field(default_factory=set)


def located(table: DeltaTable, shape: TableSchema, ids: Sequence[DocumentId]) -> Located:
    """Those of the documents that are there."""
    wanted, found = set(ids), Located()
    names = _comparable(shape)
    for piece in rows_of(table, shape, [*shape.keys, VERSION, *names], ids):
        partitions = _values(piece, names)
        for (id, version), partition in zip(ids_and_versions(piece, shape.keys), partitions, strict=True):
            if id in wanted:
                found.versions[id] = version
                found.partitions.add(partition)
    return found


def _comparable(shape: TableSchema) -> Sequence[str]:
    """The partition columns whose values have literals. Others are not read: some cannot be made Python values."""
    types = {column.name: column.type for column in shape.columns}
    return [name for name in shape.partition_by if types[name] in _LITERALS]


def _values(piece: pa.Table, names: Sequence[str]) -> Iterable[Partition]:
    if not names:
        return [()] * piece.num_rows
    return zip(*(piece.column(name).to_pylist() for name in names), strict=True)


def rows_of(
    table: DeltaTable, shape: TableSchema, columns: Sequence[str], ids: Sequence[DocumentId]
) -> Iterator[pa.Table]:
    """Rows among which are all with one of these ids: each of their keys is among theirs. ``columns`` has the keys.

    Files are left out whose statistics rule out all of the ids.
    """
    if not ids:
        return
    wanted = [pa.array(sorted(set(values)), pa.string()) for values in zip(*ids, strict=True)]
    where = " AND ".join(_within(name, values) for name, values in zip(shape.keys, wanted, strict=True))
    plain = pa.schema([shape.arrow.field(name) for name in columns])
    for piece in map(pa.Table.from_batches, _pieces(rows(table, columns, where))):
        read = piece.cast(plain)  # pyarrow cannot compare texts as the client returns them
        chosen = [pc.is_in(read.column(name), values) for name, values in zip(shape.keys, wanted, strict=True)]
        yield read.filter(functools.reduce(pc.and_, chosen))


def _within(name: str, values: pa.Array) -> str:
    """Both texts and the client compare by code points."""
    return f"{quoted(name)} BETWEEN {_literal(values[0].as_py())} AND {_literal(values[-1].as_py())}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _ROWS or sum(piece.nbytes for piece in waiting) >= _BYTES:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def partition_conditions(table: str, shape: TableSchema, partitions: Collection[Partition]) -> Iterator[str]:
    """Conditions that hold for every row of those partitions, each about one column of ``table``."""
    types = {column.name: column.type for column in shape.columns}
    for at, name in enumerate(_comparable(shape)):
        values = {partition[at] for partition in partitions}
        literals = [_partition_literal(types[name], value) for value in values if value is not None]
        if len(values) > _MOST_PARTITIONS:
            continue
        column = f"{table}.{quoted(name)}"
        among = [f"{column} IN ({', '.join(sorted(literals))})"] if literals else []
        yield f"({' OR '.join([*among, *([f'{column} IS NULL'] if None in values else [])])})"


def _partition_literal(type: str, value: Any) -> str:
    match type:
        case "string":
            return _literal(value)
        case "bigint":
            return str(value)
        case "boolean":
            return str(value).lower()
    return f"date '{value.isoformat()}'"
