"""Converts single values, DynamoDB attributes or a hook's Python values, to cells: exactly, or not at all.

A cell is a member of an array literal: text (for jsonb the JSON text), an int or a bool; None is NULL. ``nul`` is the
policy for NUL characters, which Postgres stores neither in text nor in jsonb.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from connectors.postgres.options import ColumnType, Nul
from connectors.postgres.text import JsonText, array, texts
from replicator.items.attributes import Malformed, Typed, exact
from replicator.items.to_json import Unfit, unreadable

Cell = str | int | None

_LARGEST = (1 << 63) - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = 253_402_300_799  # of the year 9999
_KINDS = {
    "S": "text", "N": "a number", "B": "binary", "BOOL": "a boolean", "M": "a map", "L": "a list",
    "SS": "a set of texts", "NS": "a set of numbers", "BS": "a set of binaries",
}  # fmt: skip


_REFUSALS = (
    Unfit,
    ValueError,
    TypeError,
    ArithmeticError,
)  # the reasons for refusing a value; anything else is raised by its own code

Encoder = Callable[[Any], Cell]


def typed_encoder(type: ColumnType, nul: Nul) -> Encoder:
    """Encodes a typed attribute (``{"N": "1"}``), or None if it is missing."""
    wanted, convert = _typed(type, nul)

    def encoder(attribute: Typed | None) -> Cell:
        if attribute is None or "NULL" in attribute:
            return None
        ((kind, inner),) = attribute.items()
        if wanted and kind not in wanted:
            raise Unfit(f"is {type}, but the attribute is {_KINDS.get(kind, 'of an unknown type')}")
        return convert(attribute if type in ("jsonb", "timestamptz") else inner)

    return encoder


def python_encoder(type: ColumnType, nul: Nul) -> Encoder:
    """Encodes a Python value."""
    wanted, convert = _python(type, nul)

    def encoder(value: object) -> Cell:
        if value is None:
            return None
        try:
            if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
                raise Unfit(f"is {type}, but the value is a {value.__class__.__name__}")
            return convert(value)
        except _REFUSALS:
            raise
        except BaseException as e:  # the value's own code
            raise unreadable(e) from e

    return encoder


def inside_typed(names: Sequence[str], encoder: Encoder) -> Encoder:
    """Encodes the value at the path ``names`` inside a map; null if a part of the path is missing."""
    return encoder if not names else lambda attribute: encoder(_descended(attribute, names, _typed_map))


def inside_python(names: Sequence[str], encoder: Encoder) -> Encoder:
    """The same for plain Python values."""
    if not names:
        return encoder

    def inside(value: object) -> Cell:
        try:
            found = _descended(value, names, _python_map)
        except _REFUSALS:
            raise
        except BaseException as e:  # the code of a hook's own mapping
            raise unreadable(e) from e
        return encoder(found)

    return inside


def _descended(value: Any, names: Sequence[str], map_of: Callable[[Any], Any]) -> Any:
    for name in names:
        if value is None:
            return None
        value = map_of(value).get(name)
    return value


def _typed_map(attribute: Typed) -> Any:
    if "NULL" in attribute:
        return {}
    if "M" not in attribute:
        raise Unfit(f"is inside a map, but the attribute is {_KINDS.get(next(iter(attribute)), 'of an unknown type')}")
    return attribute["M"]


def _python_map(value: object) -> Any:
    if not isinstance(value, Mapping):
        raise Unfit(f"is inside a map, but the value is a {value.__class__.__name__}")
    return value


def _typed(type: ColumnType, nul: Nul) -> tuple[tuple[str, ...], Encoder]:
    text = texts(nul)
    table: Mapping[str, tuple[tuple[str, ...], Encoder]] = {
        "text": (("S",), text),
        "numeric": (("N",), _digits),
        "bigint": (("N",), lambda n: whole(_exact(n))),
        "boolean": (("BOOL",), bool),
        "timestamptz": (("S", "N"), _typed_moment),
        "bytea": (("B",), lambda b: binary(base64.b64decode(b))),
        "jsonb": ((), JsonText(nul).of_typed),
        "text[]": (("SS", "L"), lambda members: array([text(m) for m in _typed_members(members, "S")])),
        "numeric[]": (("NS", "L"), lambda members: array([_digits(m) for m in _typed_members(members, "N")])),
    }
    return table[type]


def _python(type: ColumnType, nul: Nul) -> tuple[tuple[type, ...], Encoder]:
    text = texts(nul)
    sequence = (list, tuple, set, frozenset)
    table: Mapping[str, tuple[tuple[Any, ...], Encoder]] = {
        "text": ((str, UUID), lambda v: text(str(v))),
        "numeric": ((int, Decimal, float), finite),
        "bigint": ((int, Decimal, float), lambda n: whole(Decimal(finite(n)))),
        "boolean": ((bool,), bool),
        "timestamptz": ((datetime, date, str, int, Decimal, float), moment),
        "bytea": ((bytes, bytearray, memoryview), binary),
        "jsonb": ((), JsonText(nul).of_python),
        "text[]": (sequence, lambda v: array([text(m) for m in _members(v, str)])),
        "numeric[]": (sequence, lambda v: array([finite(m) for m in _members(v, int, Decimal, float)])),
    }
    return table[type]


def finite(value: int | Decimal | float) -> str:
    if isinstance(value, bool) or not (isinstance(value, int) or math.isfinite(value)):
        raise Unfit("must be a finite number")
    return str(value)


def _exact(digits: str) -> Decimal:
    try:
        return exact(digits)
    except (Malformed, TypeError):
        raise Unfit("must be a number, but the attribute is not one") from None


def _digits(digits: str) -> str:
    _exact(digits)
    return digits


def whole(number: Decimal) -> int:
    """A number that fits a bigint."""
    if number != number.to_integral_value():
        raise Unfit("is bigint, but the number has a fraction")
    if not -_LARGEST - 1 <= number <= _LARGEST:
        raise Unfit("is bigint, but the number does not fit 64 bits")
    return int(number)


def binary(value: bytes | bytearray | memoryview) -> str:
    return "\\x" + bytes(value).hex()


def _typed_moment(attribute: Typed) -> str:
    return moment(attribute["S"] if "S" in attribute else _exact(attribute["N"]))


def moment(value: datetime | date | str | int | Decimal | float) -> str:
    """A point in time from ISO 8601 text with an offset, or from seconds since 1970."""
    if isinstance(value, str):
        value = _iso(value)
    if isinstance(value, int | Decimal | float):
        return _since_1970(Decimal(finite(value)))
    if not isinstance(value, datetime):
        return value.isoformat()
    if value.utcoffset() is None:
        raise Unfit("is timestamptz, but the time has no UTC offset (expected: 2026-01-31T12:00:00Z)")
    return value.isoformat()


def _iso(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise Unfit("is timestamptz, but the text is not a time like 2026-01-31T12:00:00Z") from None


def _since_1970(seconds: Decimal) -> str:
    if not -62_135_596_800 <= seconds <= _LAST_SECOND:
        raise Unfit("is timestamptz, but the number is out of range for seconds since 1970 (milliseconds?)")
    return (_EPOCH + timedelta(microseconds=int(seconds * 1_000_000))).isoformat()


def _typed_members(members: Sequence[Any], kind: str) -> list[str]:
    if all(isinstance(m, str) for m in members):  # a set
        return sorted(members, key=_exact) if kind == "N" else sorted(members)
    if any(not isinstance(m, Mapping) or kind not in m for m in members):
        raise Unfit(f"is an array, but not every member is {_KINDS[kind]}")
    return [m[kind] for m in members]


def _members(values: Any, *types: type) -> list[Any]:
    if any(not isinstance(v, types) or isinstance(v, bool) for v in values):
        raise Unfit(f"is an array, but not every member is {'text' if str in types else 'a number'}")
    return sorted(values) if isinstance(values, set | frozenset) else list(values)
