"""Adaptive projection: decodes only the attributes that the hook has accessed in earlier items.

A hook reads few of an item's many attributes. As fields of a msgspec struct they are decoded, values included, in half
the time that it takes to split a whole image into its attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar

import msgspec

from replicator.items.attributes import DECODE_ERRORS, TO_PYTHON, decoded, value

MAX_NAMES = 32  # beyond these, names are not learned: the hook does not read few attributes
RAW = ""  # the kind of attributes that stay raw until accessed: of several kinds, or of one that needs conversion
_TYPES: Mapping[str, type] = {"S": str, "N": str, "BOOL": bool}

_attribute = msgspec.json.Decoder(dict[str, Any])

Getter = Callable[[Any], Any]


class Row(msgspec.Struct, gc=False):
    """The known attributes of one image, None for those that it lacks.

    ``fields``: from attribute name to struct field. ``getters``: from attribute name to a function that returns the
    value from a row, or raises AttributeError if the attribute is missing.
    """

    fields: ClassVar[Mapping[str, str]] = {}
    getters: ClassVar[Mapping[str, Getter]] = {}


EMPTY = Row()
msgspec.json.Decoder(Row)  # here, and not on two threads at once, which crashes msgspec


class AccessProfile:
    """The attribute names that one hook accesses, each with the kind it has had so far.

    ``row`` belongs to ``image``, the last one decoded. It is kept here and not with the item, so that the next image is
    decoded into the memory that this one frees, which is still in the CPU's cache.
    """

    def __init__(self) -> None:
        self.image: bytes | None = None
        self.row = EMPTY
        self._kinds: dict[str, str | None] = {}  # None: no item has had it yet
        self._unsupported: set[str] = set()  # names that msgspec does not accept as fields
        self._decoder = msgspec.json.Decoder(Row)

    def decode(self, image: bytes) -> Row:
        """The image's row; ``EMPTY`` if an attribute has another kind than before, or nothing was accessed yet."""
        self.image = image
        try:
            self.row = self._decoder.decode(image) if self._kinds else EMPTY
        except DECODE_ERRORS:
            self.row = EMPTY
        return self.row

    def record(self, name: str, kind: str | None) -> None:
        """The hook accessed ``name``, which was an attribute of that kind; None: the item did not have it."""
        if name in self._unsupported or (name not in self._kinds and len(self._kinds) >= MAX_NAMES):
            return
        merged = _merged(self._kinds.get(name), kind)
        if name in self._kinds and self._kinds[name] == merged:
            return
        try:
            self._decoder = msgspec.json.Decoder(_struct({**self._kinds, name: merged}))
        except ValueError:
            self._unsupported.add(name)
        else:
            self._kinds[name] = merged


def _struct(kinds: Mapping[str, str | None]) -> type[Row]:
    fields = {name: f"c{i}" for i, name in enumerate(kinds)}
    struct: Any = msgspec.defstruct(
        "Row",
        [(field, _ATTRIBUTES.get(kinds[name] or RAW, msgspec.Raw), None) for name, field in fields.items()],
        bases=(Row,),
        namespace={"fields": fields, "getters": {n: _getter(field, kinds[n]) for n, field in fields.items()}},
        rename={field: name for name, field in fields.items()},
        gc=False,
    )
    return struct  # type: ignore[no-any-return]


def _getter(field: str, kind: str | None) -> Getter:
    if kind is None or kind not in _TYPES:
        return lambda row: value(decoded(_attribute, _present(getattr(row, field))))
    inner, convert = attrgetter(f"{field}.{kind}"), TO_PYTHON[kind]
    return inner if kind != "N" else lambda row: convert(inner(row))  # the others already have the right type


def _present(raw: msgspec.Raw | None) -> msgspec.Raw:
    if raw is None:
        raise AttributeError
    return raw


def _merged(before: str | None, now: str | None) -> str | None:
    """The kind to expect of an attribute after it was seen with kind ``now``."""
    if now is None or now == before:
        return before
    return now if before is None and now in _TYPES else RAW


# Attributes of exactly one kind: anything else fails to decode, and the item is then decoded without a profile.
_ATTRIBUTES = {
    kind: msgspec.defstruct(kind, [(kind, type)], frozen=True, gc=False, forbid_unknown_fields=True)
    for kind, type in _TYPES.items()
}
