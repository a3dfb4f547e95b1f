"""Documents as items: a table's key and reserved attributes, and Python values as DynamoDB attributes."""

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
"""An item's attributes by name: each as raw JSON, or as a typed attribute (``{"N": "1"}``)."""


class Stored:
    """Makes the items of one table, without the version: the request adds it."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._quoted = [orjson.dumps(name) for name in layout.ours]

    def item(self, write: Upsert) -> bytes:
        """The item as DynamoDB JSON: an image's own bytes if possible. Unfit tells why it cannot be stored."""
        body = write.body
        if type(body) is Item and not self._layout.own_ids:
            image = bytes(body.image)
            if b"\\u" not in image and not any(name in image for name in self._quoted):
                return image
            # One of our names may be in there, perhaps only in a value, or written with a JSON escape.
            self._check_names(_attributes(image))
            return image
        raws = self._raws(body)
        self._check_names(raws)
        return orjson.dumps(self._with_key(raws, write), default=_fragment)

    def _raws(self, body: Mapping[str, object]) -> Raws:
        if type(body) is Item:
            return _attributes(bytes(body.image))
        if type(body) is Amended:
            return _attributes(bytes(body.item.image)) | fields(body.changes)
        return fields(body)

    def _check_names(self, raws: Raws) -> None:
        for name in self._layout.ours:
            if name in raws:
                raise Unfit(
                    f"has an attribute {name}, the name under which replicator stores its own values; "
                    "configure another one (target.version_attribute, target.deleted_attribute). If a pipeline that "
                    "copies in the opposite direction stored it, set loops: true in the target of both"
                )

    def _with_key(self, raws: Raws, write: Upsert) -> Raws:
        """Set the key to the document's id. Unfit where the hook returned another one."""
        for attribute, text in zip(self._layout.keys.attributes, write.id, strict=True):
            given = raws.get(attribute.name)
            if given is not None and not _equals(given, attribute.kind, text):
                raise Unfit(
                    f"has a key attribute {attribute.name} that differs from the item's own {attribute.kind} value; "
                    "leave it unchanged, or have the hook return documents with their own ids (@documents)"
                )
            raws[attribute.name] = {attribute.kind: text}
        return raws


def _attributes(image: bytes) -> Raws:
    return decoded(_raws, image)


def _equals(given: Any, kind: str, text: str) -> bool:
    attribute = _typed.decode(given) if isinstance(given, msgspec.Raw) else given
    if kind not in attribute:
        return False
    return bool((canonical_number(attribute["N"]) if kind == "N" else attribute[kind]) == text)


def _fragment(value: object) -> orjson.Fragment:
    assert isinstance(value, msgspec.Raw)
    return orjson.Fragment(bytes(value))


@dataclass(frozen=True, slots=True)
class Layout:
    """A table's ``name`` and ``keys``, and the attributes that replicator adds to items: ``version`` and ``deleted``.

    ``mark``: with an opposite pipeline, the attribute for its marks; None without. ``pristine``: it adds none.
    """

    name: str
    keys: KeySchema
    version: str
    deleted: str
    pristine: bool
    mark: str | None = None

    @property
    def own_ids(self) -> bool:
        return self.keys == OWN_IDS

    @property
    def guards(self) -> tuple[str, ...]:
        """The attributes by which the sweep and the purge find items; none if it adds none."""
        return () if self.pristine else (self.version, self.deleted)

    @property
    def ours(self) -> tuple[str, ...]:
        """Attribute names that documents must not use."""
        marks = () if self.mark is None else (self.mark,)
        return (*self.guards, *marks)


def layouts(tables: Sequence[Table], options: DynamoDBOptions) -> Mapping[str, Layout]:
    return {t.name: layout(t, options) for t in tables}


def layout(table: Table, options: DynamoDBOptions) -> Layout:
    version, deleted = options.version_attribute, options.deleted_attribute
    mark = options.mark_attribute if options.loops else None
    return Layout(table.name, table.keys, version, deleted, options.pristine, mark)


_DIGITS = 38
_LARGEST, _SMALLEST = 125, -130  # exponents of ten
_DEEPEST = 32
_WIDE = Context(prec=400)


def fields(body: Mapping[str, object]) -> dict[str, Typed]:
    """What a hook returned, as typed attributes. Unfit, also where a value's own code raises while it is read."""
    try:
        return {_name(name): typed(value) for name, value in body.items()}
    except Unfit:
        raise
    except BaseException as e:
        raise unreadable(e) from e


def typed(value: object, depth: int = 0) -> Typed:
    """One value as a typed attribute. Unfit where DynamoDB has no type for it."""
    if depth >= _DEEPEST:
        raise Unfit(f"is nested deeper than the {_DEEPEST} levels that DynamoDB stores")
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
            return {"M": {_name(name): typed(inner, depth + 1) for name, inner in value.items()}}
        case list() | tuple():
            return {"L": [typed(inner, depth + 1) for inner in value]}
        case set() | frozenset():
            return _set(value)
    raise Unfit(f"contains a {type(value).__name__}, which DynamoDB has no type for")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise Unfit(f"has a {type(name).__name__} as a name; names must be strings")
    if not name:
        raise Unfit("has an attribute with an empty name, which DynamoDB does not allow")
    return utf8(name)


def number(value: int | float | Decimal) -> str:
    """The digits of a number; of a float its shortest exact representation (0.1 is ``0.1``)."""
    exact = Decimal(repr(float(value))) if isinstance(value, float) else Decimal(value)
    if not exact.is_finite():
        raise Unfit("contains NaN or Infinity")
    if exact == 0:
        return "0"
    _, digits, exponent = _WIDE.normalize(exact).as_tuple()
    if len(digits) > _DIGITS:
        raise Unfit(f"contains a number with more than {_DIGITS} digits; round it in the hook")
    if not _SMALLEST <= len(digits) + int(exponent) - 1 <= _LARGEST:
        raise Unfit("contains a number outside of DynamoDB's range (1E-130 to 9.9E+125)")
    return str(exact)


def _set(members: set[Any] | frozenset[Any]) -> Typed:
    attributes = [typed(member) for member in members]
    kinds = {kind for attribute in attributes for kind in attribute}
    if len(kinds) != 1 or not kinds <= {"S", "N", "B"}:
        raise Unfit(
            "contains a set that is empty or mixes types; DynamoDB has sets of strings, of numbers and of binaries"
        )
    (kind,) = kinds
    return {f"{kind}S": sorted(attribute[kind] for attribute in attributes)}
