"""The schema of a table, from its config: key columns, other columns, the version. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pydantic import ValidationError

from connectors.delta.options import Column, DeltaTableOptions, Extra, decimal_digits
from replicator.errors import ConfigError
from replicator.identity import Change, Parts
from replicator.target.contract import Table

VERSION = "_version"
DOCUMENT = "document"
GOES = "_replicator_goes"  # in the rows of a batch: whether the row is removed

_ARROW = {
    "string": pa.string(),
    "json": pa.string(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "date": pa.date32(),
    "binary": pa.binary(),
    "array<string>": pa.list_(pa.string()),
}
_COLUMN = "columns."  # prefix of the parts that are columns


@dataclass(frozen=True, slots=True)
class BodyColumn:
    """A column outside the key. ``attribute``: what it is made from; None for the whole document.

    ``inside``: the path from the attribute, a map, to the value.
    """

    name: str
    type: str
    attribute: str | None
    nullable: bool = True
    inside: tuple[str, ...] = ()

    @property
    def arrow(self) -> pa.DataType:
        digits = decimal_digits(self.type)
        return _ARROW[self.type] if digits is None else pa.decimal128(*digits)


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table as the config describes it.

    ``attributes``: of the key. ``keys``: the columns that they are in, all of them text.
    """

    name: str
    attributes: tuple[str, ...]
    keys: tuple[str, ...]
    columns: tuple[BodyColumn, ...]
    extra: Extra = "ignore"  # for fields of a document that no column is made from
    partition_by: tuple[str, ...] = ()

    @property
    def arrow(self) -> pa.Schema:
        keys = [pa.field(name, pa.string()) for name in self.keys]
        columns = [pa.field(column.name, column.arrow) for column in self.columns]
        return pa.schema([*keys, pa.field(VERSION, pa.int64()), *columns])


def shape(table: Table) -> TableSchema:
    """ConfigError names everything that Delta Lake would reject."""
    try:
        options = DeltaTableOptions.model_validate(dict(table.options))
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in e.errors(include_url=False)]
        raise ConfigError(*(f"target.tables.{table.name}.{text}" for text in wrong)) from None
    attributes = tuple(attribute.name for attribute in table.keys.attributes)
    keys = tuple(map(column_name, attributes))
    extra: Extra = "ignore" if options.columns is None else options.extra
    made = TableSchema(table.name, attributes, keys, tuple(_columns(options)), extra, options.partition_by)
    if problems := list(_problems(made)):
        raise ConfigError(*problems)
    return made


def shapes(tables: Sequence[Table]) -> dict[str, TableSchema]:
    made: dict[str, TableSchema] = {}
    problems: list[str] = []
    for table in tables:
        try:
            made[table.name] = shape(table)
        except ConfigError as e:
            problems += e.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return made


def column_name(attribute: str) -> str:
    """The key column of an attribute: its name, with everything but letters, digits and _ as its code in hex.

    Delta Lake allows no spaces and no marks such as , ; { } ( ) = in names.
    """
    return "".join(mark if _is_plain(mark) else f"_{ord(mark):x}_" for mark in attribute)


def _is_plain(mark: str) -> bool:
    return mark == "_" or (mark.isascii() and mark.isalnum())


def _columns(options: DeltaTableOptions) -> Iterator[BodyColumn]:
    if options.columns is None:
        yield BodyColumn(DOCUMENT, "json", None, nullable=False)
        return
    for name, given in options.columns.items():
        column = given if isinstance(given, Column) else Column(type=given)
        attribute, *inside = column.path or (name,)
        yield BodyColumn(name, column.type, attribute, column.nullable, tuple(inside))


def _problems(shape: TableSchema) -> Iterator[str]:
    where = f"target.tables.{shape.name}"
    if shape.name.startswith(("_", ".")) or not shape.name.replace("-", "_").replace(".", "_").isidentifier():
        yield f"{where}: the name of a table must consist of letters, digits and _ - . and begin with a letter"
    taken = {VERSION, GOES}
    for name in shape.keys:
        if name.lower() in taken:
            yield f"{where}: the key column {name} has the name of another column; names differ in more than case"
        taken.add(name.lower())
    for column in shape.columns:
        if column.name.lower() in taken:
            yield f"{where}.columns: {column.name} {_why_taken(column.name, shape)}"
        taken.add(column.name.lower())
        if not column.name or any(not _is_plain(mark) for mark in column.name):
            yield f"{where}.columns: the name {column.name} may have letters, digits and _ only"


def _why_taken(name: str, shape: TableSchema) -> str:
    if name.lower() in (VERSION, GOES):
        return "is replicator's own; choose another name (from: reads the attribute)"
    if name.lower() in map(str.lower, shape.keys):
        hint = "list columns: to omit it" if shape.columns[0].attribute is None else "leave it out"
        return f"already exists as part of the key; {hint}"
    return "is listed twice; for Delta Lake, names that differ in case only are the same"


def parts(shape: TableSchema) -> Parts:
    """Each column with its type and its origin, and the partitions. Not ``extra``, which decides what is parked."""
    columns = {f"{_COLUMN}{column.name}": _described(column) for column in shape.columns}
    return columns | ({"partition_by": ", ".join(shape.partition_by)} if shape.partition_by else {})


def _described(column: BodyColumn) -> str:
    origin = "the whole document" if column.attribute is None else f"from {column.attribute}"
    if column.inside:
        origin = f"from inside {json.dumps([column.attribute, *column.inside])}"
    return f"{column.type} {'' if column.nullable else 'not null '}{origin}"


def added(shapes: dict[str, TableSchema], changes: Sequence[Change]) -> list[tuple[TableSchema, BodyColumn]] | None:
    """The columns that ``changes`` added; None if a change is another one, or rows that are there would be wrong."""
    found = []
    for change in changes:
        shape = shapes[change.table]
        column = next((c for c in shape.columns if f"{_COLUMN}{c.name}" == change.part), None)
        if not change.added or column is None or not column.nullable:
            return None
        found.append((shape, column))
    return found
