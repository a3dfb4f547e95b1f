"""Columns of a batch, each as one array literal: in bulk where all values are usual, else cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec

from connectors.postgres.cells import Cell, Encoder, inside_python, inside_typed, python_encoder, typed_encoder
from connectors.postgres.options import Nul
from connectors.postgres.table_schema import BodyColumn, TableSchema
from connectors.postgres.text import JsonText, NulFound, array, json_literal, literal
from replicator.items.attributes import Typeds
from replicator.items.item import Amended, Item
from replicator.items.to_json import Unfit
from replicator.target.contract import OWN_IDS

Bulk = Callable[[Sequence[Any]], bytes]
Body = Mapping[str, object]
Reasons = dict[int, str]

UNUSUAL = (KeyError, TypeError, ValueError, ArithmeticError, RecursionError, msgspec.DecodeError, NulFound, Unfit)
_DIGITS = b'0123456789+-.eE,"{}nul'  # characters in an array of numbers and nulls; excludes NaN and Infinity
_LARGEST = (1 << 63) - 1
_attribute = msgspec.json.Decoder(dict[str, Any])


class ColumnEncoder:
    """Encodes one column, from items or from what a hook returned."""

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
        """The literal for values of a ``Projection``. Raises one of ``UNUSUAL`` where a value needs the exact path."""
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
        """The literal for items. A value that does not fit adds its reason to ``reasons``, by index."""
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
        """The literal for what a hook returned. Raises one of ``UNUSUAL`` where a value needs the exact path."""
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
            reasons.setdefault(index, f"column {self._label} must not be null, but the attribute is missing or null")
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
    """The literal for datetimes and ISO 8601 texts. ValueError if one is not a time, or has no UTC offset."""
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


_KINDS: Mapping[str, tuple[str, type]] = {
    "text": ("S", str),
    "numeric": ("N", str),
    "bigint": ("N", str),
    "boolean": ("BOOL", bool),
    "timestamptz": ("S", str),
    "text[]": ("SS", list[str]),
}
_MOST_PARTS = 16  # hooks replace few different sets of attributes
_MISSING = msgspec.Raw(b'{"NULL":true}')


class Projection:
    """Decodes images straight to columns: the values of each column, one per image. Other attributes are skipped.

    A value is what the typed attribute contains (None if null or missing); the raw typed attribute for a column whose
    type accepts several kinds of attributes, or that is inside a map; the image itself for a column that holds the
    whole document. Only for usual items: everything else is an error here, and left to the exact path.
    """

    def __init__(self, columns: Sequence[BodyColumn]) -> None:
        self._columns = columns
        self._parts: dict[frozenset[str], Projection] = {}
        self._whole = [column.attribute for column in columns] == [None]
        fields = [_row_field(f"c{i}", column) for i, column in enumerate(columns)]
        names = {f"c{i}": column.attribute or "" for i, column in enumerate(columns)}
        self._rows = _row_decoder(fields, names)
        self._values = (
            attrgetter(*(_row_path(f"c{i}", column) for i, column in enumerate(columns))) if columns else None
        )
        self._only = len(columns) == 1

    def __call__(self, images: Sequence[bytes]) -> Sequence[Sequence[Any]]:
        """msgspec.DecodeError for an unusual image, TypeError if these columns cannot be projected."""
        if self._whole:
            return [images]
        if self._values is None:
            return []
        if self._rows is None:
            raise TypeError
        decode, values = self._rows.decode, self._values
        rows = [values(decode(image)) for image in images]
        return [rows] if self._only else list(zip(*rows, strict=True))

    def without(self, attributes: frozenset[str]) -> Projection:
        """The projection without the columns of these attributes, whose values a hook replaced."""
        if attributes not in self._parts:
            self._parts = self._parts if len(self._parts) < _MOST_PARTS else {}
            self._parts[attributes] = Projection([c for c in self._columns if c.attribute not in attributes])
        return self._parts[attributes]


def _row_decoder(fields: Sequence[tuple[str, type, Any]], names: Mapping[str, str]) -> msgspec.json.Decoder[Any] | None:
    """None if two columns share an attribute, or msgspec allows no field of that name (with quotes, for example)."""
    if len(set(names.values())) < len(names):
        return None
    try:
        return msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=names, gc=False))
    except ValueError:
        return None


def _row_field(name: str, column: BodyColumn) -> tuple[str, type, Any]:
    if column.type not in _KINDS or column.inside:
        return name, msgspec.Raw, _MISSING
    shape = _ATTRIBUTES[_KINDS[column.type][0]]
    return name, shape, shape()


def _row_path(name: str, column: BodyColumn) -> str:
    return f"{name}.{_KINDS[column.type][0]}" if column.type in _KINDS and not column.inside else name


def _attribute_struct(kind: str, type: type) -> type[msgspec.Struct]:
    """A struct for an attribute of exactly this kind, or null."""
    fields = [(kind, type, None), ("NULL", bool, False)]
    return msgspec.defstruct(kind, fields, frozen=True, gc=False, forbid_unknown_fields=True)


_ATTRIBUTES = {kind: _attribute_struct(kind, type) for kind, type in dict(_KINDS.values()).items()}


_LONGEST = 63  # characters of a name to show; no column has a longer one
_MOST = 8  # columns to list


class UnknownColumns:
    """Finds fields of a hook's documents that no column is made from: a typo must not become a column of nulls.

    Whole items are not checked: of those a table stores what it has columns for.
    """

    def __init__(self, shape: TableSchema) -> None:
        keys = () if shape.keys_are(OWN_IDS) else tuple(key.name for key in shape.keys)
        self._refused = shape.extra == "reject"
        self._label = shape.name
        self._names = tuple(dict.fromkeys(c.attribute for c in shape.columns if c.attribute is not None))
        self._known = frozenset((*self._names, *keys))

    def reject(self, bodies: Sequence[Any], kinds: set[type], reasons: dict[int, str]) -> None:
        """Add a reason for each document with a field that no column is made from."""
        if not self._refused or kinds == {Item}:
            return
        given: Sequence[Iterable[Any]] = bodies if kinds == {dict} else [_names(body) for body in bodies]
        if self._known.issuperset(set().union(*given)):  # many times faster than one by one
            return
        for index, names in enumerate(given):
            for name in names:
                if name not in self._known:
                    reasons.setdefault(index, self._reason(name))

    def _reason(self, name: object) -> str:
        shown = name[:_LONGEST] if isinstance(name, str) else f"of type {type(name).__name__}"
        return (
            f"the hook returned a field {shown}, which no column of {self._label} is made from; "
            f"{_nearest(str(shown), self._names)} (extra: ignore leaves such fields out)"
        )


def _names(body: Mapping[Any, object]) -> Iterable[Any]:
    """The names that the hook itself set, without those of an item it passed on."""
    if type(body) is Item:
        return ()
    return body.changes if type(body) is Amended else body


@lru_cache(maxsize=128)
def _nearest(name: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(name, known, 1, 0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(known[:_MOST])}{', …' if len(known) > _MOST else ''}"
