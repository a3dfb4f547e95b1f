"""How documents are stored as items: a table's layout, the documents themselves, and Python values as attributes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Context, Decimal
from typing import Any
from uuid import UUID

import msgspec
import orjson

from connectors.dynamodb.options import DynamoDBOptions
from replicator.batch import Upsert
from replicator.items.attributes import Typed, canonical_number, decoded
from replicator.items.item import Amended, Item
from replicator.items.to_json import Unfit, unreadable, utf8
from replicator.key import KeySchema
from replicator.target.contract import OWN_IDS, Table

_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
_typed = msgspec.json.Decoder(dict[str, Any])

Raws = dict[str, Any]
"""An item's attributes by name, each as JSON text or as what becomes it."""


class Stored:
    """Makes items for one table, without the version: that is added to the request."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._quoted = [orjson.dumps(name) for name in layout.ours]

    def item(self, write: Upsert) -> bytes:
        """The item's JSON. Unfit says in words why it cannot be stored."""
        body = write.body
        if type(body) is Item and not self._layout.own_ids:
            image = bytes(body.image)
            if b"\\u" not in image and not any(name in image for name in self._quoted):
                return image
            # perhaps only a value looks like one of our names; or one is spelt with an escape, as JSON allows
            self._check_names(_attributes(image))
            return image
        found = self._raws(body)
        self._check_names(found)
        return orjson.dumps(self._with_key(found, write), default=_as_text)

    def _raws(self, body: Mapping[str, object]) -> Raws:
        if type(body) is Item:
            return _attributes(bytes(body.image))
        if type(body) is Amended:
            return _attributes(bytes(body.item.image)) | fields(body.changes)
        return fields(body)

    def _check_names(self, found: Raws) -> None:
        for name in self._layout.ours:
            if name in found:
                raise Unfit(
                    f"has an attribute {name} of its own, which is where replicator keeps what it must remember; "
                    "give it another name (target.version_attribute, target.deleted_attribute)"
                )

    def _with_key(self, found: Raws, write: Upsert) -> Raws:
        """The key is the one that the document is filed under; where a hook says another one, it is a mistake."""
        for attribute, text in zip(self._layout.keys.attributes, write.id, strict=True):
            given = found.get(attribute.name)
            if given is not None and not _is(given, attribute.kind, text):
                raise Unfit(
                    f"has a key attribute {attribute.name} that is not the item's own {attribute.kind} value; "
                    "leave it as it is, or let the hook give documents ids of their own (@documents)"
                )
            found[attribute.name] = {attribute.kind: text}
        return found


def _attributes(image: bytes) -> Raws:
    return decoded(_raws, image)


def _is(given: Any, kind: str, text: str) -> bool:
    attribute = _typed.decode(given) if isinstance(given, msgspec.Raw) else given
    if kind not in attribute:
        return False
    return bool((canonical_number(attribute["N"]) if kind == "N" else attribute[kind]) == text)


def _as_text(value: object) -> orjson.Fragment:
    assert isinstance(value, msgspec.Raw)
    return orjson.Fragment(bytes(value))


@dataclass(frozen=True, slots=True)
class Layout:
    """A table's ``name`` and key, and the attributes that are ours in it: ``version``, ``deleted``.

    ``pristine``: there are none of ours.
    """

    name: str
    keys: KeySchema
    version: str
    deleted: str
    pristine: bool

    @property
    def own_ids(self) -> bool:
        return self.keys == OWN_IDS

    @property
    def ours(self) -> tuple[str, ...]:
        """Names that no document may use for itself."""
        return () if self.pristine else (self.version, self.deleted)


def layouts(tables: Sequence[Table], options: DynamoDBOptions) -> Mapping[str, Layout]:
    return {t.name: layout(t, options) for t in tables}


def layout(table: Table, options: DynamoDBOptions) -> Layout:
    return Layout(table.name, table.keys, options.version_attribute, options.deleted_attribute, options.pristine)


_DIGITS = 38
_LARGEST, _SMALLEST = 125, -130  # exponents of ten
_DEEPEST = 32
_WIDE = Context(prec=400)


def fields(body: Mapping[str, object]) -> dict[str, Typed]:
    """What a hook returned as attributes; Unfit also where reading a value runs code of its own, which raises."""
    try:
        return {name_of(name): typed(value) for name, value in body.items()}
    except Unfit:
        raise
    except BaseException as e:
        raise unreadable(e) from e


def typed(value: object, depth: int = 0) -> Typed:
    """One value as a typed attribute. Unfit says in words what DynamoDB has no type for."""
    if depth >= _DEEPEST:
        raise Unfit(f"is nested more than the {_DEEPEST} levels that DynamoDB stores")
    match value:
        case str():
            return {"S": utf8(str(value))}
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": value}
        case int() | Decimal() | float():
            return {"N": number(value)}
        case bytes() | bytearray() | memoryview():
            return {"B": base64.b64encode(bytes(value)).decode()}
        case datetime() | date():
            return {"S": value.isoformat()}
        case UUID():
            return {"S": str(value)}
    return _nested(value, depth)


def _nested(value: object, depth: int) -> Typed:
    match value:
        case Mapping():
            return {"M": {name_of(name): typed(inner, depth + 1) for name, inner in value.items()}}
        case list() | tuple():
            return {"L": [typed(inner, depth + 1) for inner in value]}
        case set() | frozenset():
            return _set(value)
    raise Unfit(f"contains a {type(value).__name__}, which DynamoDB has no type for")


def name_of(name: object) -> str:
    """An attribute's name, or one in a map."""
    if not isinstance(name, str):
        raise Unfit(f"has a {type(name).__name__} as a name; names must be strings")
    if not name:
        raise Unfit("has an attribute with an empty name, which DynamoDB does not store")
    return utf8(name)


def number(value: int | float | Decimal) -> str:
    """The digits of a number; a float's are those that stand for it exactly (0.1 is 0.1)."""
    exact = Decimal(repr(float(value))) if isinstance(value, float) else Decimal(value)
    if not exact.is_finite():
        raise Unfit("contains NaN or Infinity")
    if exact == 0:
        return "0"
    _, digits, exponent = _WIDE.normalize(exact).as_tuple()
    if len(digits) > _DIGITS:
        raise Unfit(f"contains a number with more than {_DIGITS} digits; round it in the hook")
    if not _SMALLEST <= len(digits) + int(exponent) - 1 <= _LARGEST:
        raise Unfit("contains a number beyond what DynamoDB can hold (1E-130 to 9.9E+125)")
    return str(exact)


def _set(members: set[Any] | frozenset[Any]) -> Typed:
    found = [typed(member) for member in members]
    kinds = {kind for member in found for kind in member}
    if len(kinds) != 1 or not kinds <= {"S", "N", "B"}:
        raise Unfit("contains a set that is empty or of unlike members; DynamoDB's are of text, of numbers or of bytes")
    (kind,) = kinds
    return {f"{kind}S": sorted(member[kind] for member in found)}
