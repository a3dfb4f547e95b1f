"""The schema of a target table, from its config: key columns, other columns, and names that Postgres rejects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from psycopg import sql
from pydantic import ValidationError

from connectors.postgres.options import BASE, HISTORY, Column, ColumnType, Extra, PostgresTable
from replicator.errors import ConfigError
from replicator.key import KeySchema
from replicator.target.contract import Generation, Table

VERSION = "_version"
DOCUMENT = "document"
DELETED = "deleted_at"  # with deletes: mark; NULL in rows that have an item

_BUILT = "_new"  # of the history of a copy that a rebuild makes, until it ends
_LONGEST_SUFFIX = len("_20260131")  # of a partition's name
HISTORY_COLUMNS = {  # the type of each column after the key, and whether it is NOT NULL
    "_changed_at": ("timestamptz", True),
    "_sequence": ("text", True),
    "_version": ("bigint", True),
    "_operation": ("text", True),
    "_old": ("jsonb", False),
    "_new": ("jsonb", False),
    "_problem": ("text", False),
}

LONGEST_NAME = 63  # bytes; Postgres silently truncates longer ones, and then they may collide
MOST_COLUMNS = 1600
SYSTEM = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})  # columns that every table has
_KEY_TYPES = {"S": "text", "N": "numeric", "B": "bytea"}


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of the primary key. ``kind`` is DynamoDB's type: S, N or B."""

    name: str
    kind: str

    @property
    def type(self) -> str:
        return _KEY_TYPES[self.kind]


@dataclass(frozen=True, slots=True)
class BodyColumn:
    """A column outside the key. ``attribute``: what it is made from; None for the whole document.

    ``inside``: the path from the attribute, a map, to the value.
    """

    name: str
    type: ColumnType
    attribute: str | None
    nullable: bool
    inside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table as the config describes it. ``name``: in the database.

    ``history_name``: of its history, if that does not follow from its own. During a rebuild tables exchange their
    names, and their histories do not.
    """

    name: str
    schema: str
    keys: tuple[KeyColumn, ...]
    columns: tuple[BodyColumn, ...]
    extra: Extra = "ignore"  # for fields of a document that no column is made from
    adopt: bool = False
    marks: bool = False  # rows whose item is gone stay, and have a time in the column DELETED
    history: bool = False  # every change is kept in another table
    keep: int | None = None  # days for which it is; None: for good
    history_name: str = ""

    def keys_are(self, keys: KeySchema) -> bool:
        return tuple((key.name, key.kind) for key in self.keys) == tuple((a.name, a.kind) for a in keys.attributes)

    @property
    def qualified(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        """The quoted name. It is unambiguous, so it also identifies the table among the tombstones."""
        return self.qualified.as_string(None)


def history_of(shape: TableSchema) -> TableSchema:
    """The table with the history; only its name and its key are those of the schema."""
    return TableSchema(shape.history_name or shape.name + HISTORY, shape.schema, shape.keys, ())


def continued_by(shape: TableSchema) -> TableSchema | None:
    """The table as it is once a rebuild has ended, if it makes this one: with the history that this one's continues."""
    suffix = HISTORY + _BUILT
    if not shape.history or not shape.history_name.endswith(suffix):
        return None
    name = shape.history_name.removesuffix(suffix)
    return replace(shape, name=name, history_name=name + HISTORY)


def shapes(tables: Sequence[Table], schema: str) -> dict[str, TableSchema]:
    """The schema of each table by its name. ConfigError names everything that Postgres would reject."""
    found = [_shape(table, schema) for table in tables]
    problems = [problem for shape in found for problem in _problems(shape)]
    twice = [name for name, count in Counter(table.name for table in tables).items() if count > 1]
    problems += [f"target: the table {name} is listed twice" for name in twice]
    problems += _names_of_histories(found)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return {table.name: shape for table, shape in zip(tables, found, strict=True)}


def _names_of_histories(found: Sequence[TableSchema]) -> Iterator[str]:
    """Tables that have the name of a table of another one's history."""
    names = {shape.name for shape in found}
    for shape in found:
        history = history_of(shape).name
        for name in sorted(names & {history, f"{history}{BASE}"} if shape.history else ()):
            yield f"target.tables.{name}: the history of {shape.name} has a table of this name; rename one of the two"


def _shape(table: Table, schema: str) -> TableSchema:
    try:
        options = PostgresTable.model_validate(dict(table.options))
    except ValidationError as e:
        wrong = [f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in e.errors(include_url=False)]
        raise ConfigError(*(f"target.tables.{table.name}.{text}" for text in wrong)) from None
    keys = tuple(KeyColumn(a.name, a.kind) for a in table.keys.attributes)
    whole = options.columns is None
    extra: Extra = "ignore" if whole else options.extra
    name = table.stored_as or table.name
    given, marks = options.history, options.deletes == "mark"
    keep = None if given is None else given.keep
    columns = tuple(_columns(options))
    beside = table.name + HISTORY + (_BUILT if table.generation is Generation.NEW else "")
    return TableSchema(name, schema, keys, columns, extra, options.adopt, marks, given is not None, keep, beside)


def _columns(options: PostgresTable) -> Iterator[BodyColumn]:
    if options.columns is None:
        yield BodyColumn(DOCUMENT, "jsonb", None, False)
        return
    for name, given in options.columns.items():
        column = given if isinstance(given, Column) else Column(type=given)
        attribute, *inside = column.path or (name,)
        yield BodyColumn(name, column.type, attribute, column.nullable, tuple(inside))


def _problems(shape: TableSchema) -> Iterator[str]:
    where = f"target.tables.{shape.name}"
    yield from (f"target.schema: {text}" for text in _unusable(shape.schema))
    yield from (f"{where}: {text}" for text in _unusable(shape.name))
    keys = [key.name for key in shape.keys]
    yield from (f"{where}: key attribute {text}" for name in keys for text in _unusable(name))
    yield from (f"{where}: {text}" for text in _reserved(keys, shape))
    yield from (f"{where}.columns: {text}" for c in shape.columns for text in _unusable(c.name))
    total = len(shape.keys) + len(shape.columns) + 1 + shape.marks
    if shape.history:
        yield from _without_room(shape)
    if total > MOST_COLUMNS:
        yield f"{where}: a Postgres table has at most {MOST_COLUMNS} columns, this one would have {total}"


def _without_room(shape: TableSchema) -> Iterator[str]:
    """What leaves no room for the names of a history's tables and columns."""
    where, longest = f"target.tables.{shape.name}.history", LONGEST_NAME - len(HISTORY) - _LONGEST_SUFFIX
    name = history_of(shape).name
    if len(name.encode(errors="replace")) > LONGEST_NAME - _LONGEST_SUFFIX:
        longest -= len(_BUILT) if name.endswith(HISTORY + _BUILT) else 0
        yield f"{where}: the names of its tables would be too long; the name of the table may have {longest} bytes"
    for key in shape.keys:
        if key.name in HISTORY_COLUMNS:
            yield f"{where}: the key attribute {key.name} has the name of one of its columns"


def _unusable(name: str) -> Iterator[str]:
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        yield f"{name!r} cannot be written as UTF-8"
        return
    if size > LONGEST_NAME:
        yield f"the name {name} has {size} bytes, but Postgres keeps only {LONGEST_NAME}; choose a shorter one"
    if not name or "\0" in name:
        yield f"{name!r} is not a valid name in Postgres"


def _reserved(keys: Sequence[str], shape: TableSchema) -> Iterator[str]:
    names = [column.name for column in shape.columns]
    if VERSION in keys:
        yield f"the key attribute {VERSION} has the name of replicator's own version column"
    if VERSION in names:
        yield f"the column {VERSION} is replicator's own; choose another name (from: {VERSION} reads the attribute)"
    if shape.marks and DELETED in [*keys, *names]:
        yield f"the column {DELETED} holds the time of deletion under deletes: mark; nothing else can be stored in it"
    for name in sorted(SYSTEM.intersection([*keys, *names])):
        yield f"the column {name} has the name of a system column of Postgres"
    for name in keys:
        if name in names:
            hint = "list columns: to omit it" if shape.columns[0].attribute is None else "leave it out"
            yield f"the column {name} already exists as part of the key; {hint}"
