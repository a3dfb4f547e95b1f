"""A column of a batch as one array literal: in bulk where every value is of the usual kind, cell by cell otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from connectors.postgres.cells import Cell, Encoder, inside_python, inside_typed, python_encoder, typed_encoder
from connectors.postgres.literals import NulFound, array, json_literal, literal
from connectors.postgres.options import Nul
from connectors.postgres.table_schema import BodyColumn
from connectors.postgres.text import JsonText
from replicator.items.attributes import Typeds
from replicator.items.to_json import Unfit

Bulk = Callable[[Sequence[Any]], bytes]
Body = Mapping[str, object]
Reasons = dict[int, str]

UNUSUAL = (KeyError, TypeError, ValueError, ArithmeticError, RecursionError, msgspec.DecodeError, NulFound, Unfit)
_DIGITS = b'0123456789+-.eE,"{}nul'  # what an array of numbers and nulls is made of: no NaN, no Infinity
_LARGEST = (1 << 63) - 1
_attribute = msgspec.json.Decoder(dict[str, Any])


class ColumnEncoder:
    """How one column is made from items, and how from what a hook returned."""

    def __init__(self, column: BodyColumn, nul: Nul) -> None:
        self._column = column
        self._json = JsonText(nul)
        self._typed = inside_typed(column.inside, typed_encoder(column.type, nul))
        self._python = inside_python(column.inside, python_encoder(column.type, nul))
        self._bulk = None if column.inside else _BULK.get(column.type)

    @property
    def attribute(self) -> str | None:
        return self._column.attribute

    def usual(self, values: Sequence[Any]) -> bytes:
        """The literal for what a ``Projection`` gave; one of ``UNUSUAL`` where some value needs a closer look."""
        if self._column.attribute is None:
            return json_literal(self._json.of_images(values))
        if self._column.type == "jsonb" and not self._column.inside:
            return self._strict(self._json.of_raws(values))
        if self._bulk is None:
            return self._strict([self._typed(_attribute.decode(raw)) for raw in values])
        if not self._column.nullable and None in values:
            raise KeyError
        return self._bulk[1](values)

    def items(self, typeds: Sequence[Typeds], reasons: Reasons) -> bytes:
        """The literal for items; where a value does not fit, its reason under its index."""
        try:
            return self._items_at_once(typeds)
        except UNUSUAL:
            if self._column.attribute is None:
                return self._one_by_one(typeds, self._json.of_item, reasons)
            name = self._column.attribute
            return self._one_by_one([t.get(name) for t in typeds], self._typed, reasons)

    def bodies(self, bodies: Sequence[Body], reasons: Reasons) -> bytes:
        """The same for what a hook returned."""
        try:
            return self.usual_bodies(bodies)
        except UNUSUAL:
            if self._column.attribute is None:
                return self._one_by_one(bodies, self._json.of_python, reasons)
            name = self._column.attribute
            return self._one_by_one([b.get(name) for b in bodies], self._python, reasons)

    def _items_at_once(self, typeds: Sequence[Typeds]) -> bytes:
        if (name := self._column.attribute) is None:
            return json_literal([self._json.of_item(t) for t in typeds])
        if self._bulk is None:
            return self._strict([self._typed(t.get(name)) for t in typeds])
        kind, finish = self._bulk
        if not self._column.nullable:
            return finish([t[name][kind] for t in typeds])
        return finish([None if (a := t.get(name)) is None else a[kind] for t in typeds])

    def usual_bodies(self, bodies: Sequence[Body]) -> bytes:
        """The literal for what a hook returned; one of ``UNUSUAL`` where some value needs a closer look."""
        if (name := self._column.attribute) is None:
            return json_literal([self._json.of_python(b) for b in bodies])
        values = [b.get(name) for b in bodies]
        if self._bulk is None:
            return self._strict([self._python(v) for v in values])
        kinds = set(map(type, values))
        if self._column.nullable:
            kinds.discard(type(None))
        if not kinds <= _USUAL[self._column.type]:
            raise TypeError
        return self._bulk[1](values)

    def _strict(self, cells: Sequence[Cell]) -> bytes:
        if not self._column.nullable and None in cells:
            raise KeyError
        return _finish(self._column.type)(cells)

    def _one_by_one(self, values: Sequence[Any], encoder: Encoder, reasons: Reasons) -> bytes:
        cells = [self._cell(i, value, encoder, reasons) for i, value in enumerate(values)]
        return _finish(self._column.type)(cells)

    def _cell(self, index: int, value: Any, encoder: Encoder, reasons: Reasons) -> Cell:
        try:
            cell = encoder(value)
        except (Unfit, ValueError, TypeError, ArithmeticError) as e:
            why = str(e) if isinstance(e, Unfit) else "cannot hold the value"
            reasons.setdefault(index, f"column {self._label} {why}")
            return None
        if cell is None and not self._column.nullable:
            reasons.setdefault(index, f"column {self._label} may not be null, and the attribute is missing or null")
        return cell

    @property
    def _label(self) -> str:
        name, attribute = self._column.name, self._column.attribute
        if attribute is None or (attribute == name and not self._column.inside):
            return name
        return f"{name} (from {'.'.join((attribute, *self._column.inside))})"


def _numbers(values: Sequence[Any]) -> bytes:
    found = literal([v if type(v) is str or v is None else str(v) for v in values])
    if found.translate(None, _DIGITS):
        raise ValueError
    return found


def _integers(values: Sequence[Any]) -> bytes:
    found = [None if v is None else int(v) for v in values]
    if max((v for v in found if v is not None), default=0) > _LARGEST:
        raise ValueError
    return literal(found)


def times(values: Sequence[Any]) -> bytes:
    """From ISO 8601 texts and points in time. ValueError where one is no time, or has no offset from UTC."""
    found = [datetime.fromisoformat(v) if type(v) is str else v for v in values]
    if any(v is not None and v.tzinfo is None for v in found):
        raise ValueError
    return literal(found)


def _sets(values: Sequence[Any]) -> bytes:
    return literal([None if v is None else array(sorted(v)) for v in values])


def _finish(type: str) -> Callable[[Sequence[Any]], bytes]:
    return json_literal if type == "jsonb" else literal


_BULK: Mapping[str, tuple[str, Bulk]] = {
    "text": ("S", literal),
    "numeric": ("N", _numbers),
    "bigint": ("N", _integers),
    "boolean": ("BOOL", literal),
    "timestamptz": ("S", times),
    "text[]": ("SS", _sets),
}
_USUAL: Mapping[str, set[type]] = {
    "text": {str}, "numeric": {int, Decimal}, "bigint": {int}, "boolean": {bool}, "timestamptz": {str, datetime},
    "text[]": set(),
}  # fmt: skip
