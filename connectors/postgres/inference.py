"""Proposes columns from what sampled documents contain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from connectors.postgres.options import ColumnType
from connectors.postgres.table_schema import LONGEST_NAME, MOST_COLUMNS, SYSTEM, VERSION
from replicator.target.contract import OWN_IDS, Table
from replicator.target.observed import Field, Proposal

ENOUGH = 100  # values from which on a narrower type than the safe one is proposed
_SPECIAL = re.compile(r"\W", re.ASCII)
_TYPES: dict[str, ColumnType] = {
    "text": "text",
    "number": "numeric",
    "boolean": "boolean",
    "binary": "bytea",
    "set of texts": "text[]",
    "set of numbers": "numeric[]",
    "time": "timestamptz",
    "date": "timestamptz",
}


def proposal(table: Table, fields: Sequence[Field]) -> Proposal:
    """A column for each field outside the key, the most frequent ones if a table cannot have as many."""
    keys = () if table.keys == OWN_IDS else table.keys.names
    wanted = [field for field in fields if field.name not in keys]
    room = MOST_COLUMNS - len(table.keys.names) - 1
    columns: dict[str, Any] = {}
    about: dict[tuple[str, ...], Field] = {}
    omitted = [f"a Postgres table has at most {MOST_COLUMNS} columns"] if len(wanted) > room else []
    for field in wanted[:room]:
        if "${" in field.name or not field.name:
            omitted.append(f"a config cannot name the field {field.name!r}")
            continue
        name = _column(field.name, {*table.keys.names, *columns})
        columns[name] = _typed(field) if name == field.name else {"type": _typed(field), "from": [field.name]}
        about["columns", name] = field
    return Proposal({"columns": columns} if columns else {}, about, omitted)


def _typed(field: Field) -> ColumnType:
    """The type that holds every sampled value; where few were sampled, one that holds others of that kind as well."""
    if len(field.kinds) != 1:
        return "jsonb"
    (kind,) = field.kinds
    if field.count >= ENOUGH and kind == "text" and field.moments:
        return "timestamptz"
    if field.count >= ENOUGH and kind == "number" and field.whole:
        return "bigint"
    return _TYPES.get(kind, "jsonb")


def _column(name: str, taken: set[str]) -> str:
    """A column's name for a field: its own, or one close to it that Postgres and the config accept."""
    return next(candidate for candidate in _candidates(name) if candidate not in taken)


def _candidates(name: str) -> Iterator[str]:
    reserved = name == VERSION or name in SYSTEM
    if not reserved and "." not in name and "\0" not in name and len(name.encode()) <= LONGEST_NAME:
        yield name
    plain = _SPECIAL.sub("_", name)[: LONGEST_NAME - 9]
    yield f"{plain}_" if reserved else plain
    yield f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
