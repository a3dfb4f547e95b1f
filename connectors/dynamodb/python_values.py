"""What a hook returned, in DynamoDB's types: every number exact, nothing guessed."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Context, Decimal
from typing import Any
from uuid import UUID

from replicator.items.attributes import Typed
from replicator.items.to_json import Unfit, unreadable, utf8

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
        raise Unfit(f"has a {type(name).__name__} as a name; names are text")
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
