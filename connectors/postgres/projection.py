"""Images straight to columns: what the table has is decoded, the rest is skipped, and no dictionaries are made for it.

This is the way for items as they usually are; whatever else is in an image is an error here, and decoded with care by
somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from connectors.postgres.table_schema import BodyColumn

_KINDS: Mapping[str, tuple[str, type]] = {
    "text": ("S", str),
    "numeric": ("N", str),
    "bigint": ("N", str),
    "boolean": ("BOOL", bool),
    "timestamptz": ("S", str),
    "text[]": ("SS", list[str]),
}
_MOST_PARTS = 16  # hooks put few different sets of attributes in place
_MISSING = msgspec.Raw(b'{"NULL":true}')


class Projection:
    """What some columns are made of: for each its values, one an image.

    A value is what is inside the typed attribute (None where that is null or missing); the raw typed attribute for a
    column whose type takes attributes of several kinds, or that is inside of a map; the image itself for a column that
    holds the whole document.
    """

    def __init__(self, columns: Sequence[BodyColumn]) -> None:
        self._columns = columns
        self._parts: dict[frozenset[str], Projection] = {}
        self._whole = [column.attribute for column in columns] == [None]
        fields = [_field(f"c{i}", column) for i, column in enumerate(columns)]
        names = {f"c{i}": column.attribute or "" for i, column in enumerate(columns)}
        self._rows = _decoder(fields, names)
        self._values = attrgetter(*(_path(f"c{i}", column) for i, column in enumerate(columns))) if columns else None
        self._only = len(columns) == 1

    def __call__(self, images: Sequence[bytes]) -> Sequence[Sequence[Any]]:
        """msgspec.DecodeError for any image that is not as usual, TypeError where there is no such way."""
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
        """The same for the other columns: what a hook put in their place need not be decoded."""
        if attributes not in self._parts:
            self._parts = self._parts if len(self._parts) < _MOST_PARTS else {}
            self._parts[attributes] = Projection([c for c in self._columns if c.attribute not in attributes])
        return self._parts[attributes]


def _decoder(fields: Sequence[tuple[str, type, Any]], names: Mapping[str, str]) -> msgspec.json.Decoder[Any] | None:
    """None where two columns share an attribute, or msgspec has no field of that name (with quotes, say)."""
    if len(set(names.values())) < len(names):
        return None
    try:
        return msgspec.json.Decoder(msgspec.defstruct("Row", fields, rename=names, gc=False))
    except ValueError:
        return None


def _field(name: str, column: BodyColumn) -> tuple[str, type, Any]:
    if column.type not in _KINDS or column.inside:
        return name, msgspec.Raw, _MISSING
    shape = _ATTRIBUTES[_KINDS[column.type][0]]
    return name, shape, shape()


def _path(name: str, column: BodyColumn) -> str:
    return f"{name}.{_KINDS[column.type][0]}" if column.type in _KINDS and not column.inside else name


def _attribute(kind: str, type: type) -> type[msgspec.Struct]:
    """An attribute of this kind, or null, and nothing else."""
    fields = [(kind, type, None), ("NULL", bool, False)]
    return msgspec.defstruct(kind, fields, frozen=True, gc=False, forbid_unknown_fields=True)


_ATTRIBUTES = {kind: _attribute(kind, type) for kind, type in dict(_KINDS.values()).items()}
