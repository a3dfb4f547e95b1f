"""Attribute values as DynamoDB stores them: validated, numbers normalized, sets sorted, with their size.

Equal items have equal bytes, which decides whether a put changes anything.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

from replicator.items.attributes import Typed, Typeds
from replicator.testing.dynamodb.refusals import invalid

_LARGEST = 400 * 1024  # bytes of an item
_DEEPEST = 31  # nested maps and lists, so that a value in the innermost is on level 32
_MOST_DIGITS = 38
_SPELLED = re.compile("[1-9][0-9]*")  # integers in normal form


def stored_form(item: Mapping[str, Any]) -> Typeds:
    """An item from a request as it will be read back; ValidationException for what DynamoDB rejects."""
    return sized_form(item)[0]


def sized_form(item: Mapping[str, Any]) -> tuple[Typeds, int]:
    """The same with its size, see ``item_size``."""
    if not isinstance(item, Mapping):
        raise invalid("Item must be a map of attribute values")
    found = _map(item, 0)
    if (size := item_size(found)) > _LARGEST:
        raise invalid("Item size has exceeded the maximum allowed size")
    return found, size


def _map(inner: Mapping[str, Any], depth: int) -> Typeds:
    if "" in inner:
        raise invalid("Empty attribute name")
    return {str(name): _stored(attribute, depth) for name, attribute in inner.items()}


def image(item: Typeds) -> bytes:
    """The bytes of an item in its stored form; equal items give equal bytes."""
    return orjson.dumps(item, option=orjson.OPT_SORT_KEYS)


def item_size(item: Typeds) -> int:
    """Bytes as AWS counts them: names and values in UTF-8, numbers two digits a byte, containers a few more."""
    return sum(len(name.encode()) + _size(attribute) for name, attribute in item.items())


def _stored(attribute: Any, depth: int) -> Typed:
    if not isinstance(attribute, Mapping) or len(attribute) != 1:
        raise invalid("Supplied AttributeValue has more than one datatypes set, must contain exactly one datatype")
    ((kind, inner),) = attribute.items()
    if kind == "S":  # fast path: most values are strings
        return {"S": _text(inner)}
    if kind in ("M", "L") and depth >= _DEEPEST:
        raise invalid("Nesting Levels have exceeded supported limits")
    if kind == "M":
        return {"M": _map(inner, depth + 1)}
    if kind == "L":
        return {"L": [_stored(v, depth + 1) for v in inner]}
    try:
        return {kind: _SCALARS[kind](inner)}
    except KeyError:
        raise invalid(f"Supplied AttributeValue is empty or of an unknown type: {kind}") from None


def _text(inner: Any) -> str:
    if not isinstance(inner, str):
        raise invalid("an S value must be a string")
    return inner


def _binary(inner: Any) -> str:
    try:
        return base64.b64encode(base64.b64decode(inner, validate=True)).decode()
    except (binascii.Error, TypeError, ValueError):
        raise invalid("a B value must be base64 text") from None


def _null(inner: Any) -> bool:
    if inner is not True:
        raise invalid("Null attribute value types must have the value of true")
    return True


def _members(one: Callable[[Any], str]) -> Callable[[Any], list[str]]:
    def members(inner: Any) -> list[str]:
        found = sorted(map(one, inner))
        if not found:
            raise invalid("One or more parameter values were invalid: An set may not be empty")
        if len(set(found)) < len(found):
            raise invalid("One or more parameter values were invalid: Input collection contains duplicates")
        return found

    return members


def stored_number(digits: Any) -> str:
    """A number in DynamoDB's normal form: no exponent, no superfluous zeros."""
    if isinstance(digits, str) and len(digits) <= _MOST_DIGITS and _SPELLED.fullmatch(digits):
        return digits
    try:
        number = Decimal(digits)
    except (InvalidOperation, TypeError, ValueError):
        number = Decimal("NaN")
    if not number.is_finite():
        raise invalid(f"The parameter cannot be converted to a numeric value: {digits}")
    sign, figures, exponent = number.as_tuple()
    text = "".join(map(str, figures)).lstrip("0")
    short = text.rstrip("0")
    if not short:
        return "0"
    scale = int(exponent) + len(text) - len(short)
    _check_range(len(short), scale)
    return ("-" if sign else "") + _written(short, scale)


def _check_range(digits: int, scale: int) -> None:
    if digits > _MOST_DIGITS:
        raise invalid("Attempting to store more than 38 significant digits in a Number")
    magnitude = digits + scale - 1
    if magnitude > 125:
        raise invalid("Number overflow. Attempting to store a number with magnitude larger than supported range")
    if magnitude < -130:
        raise invalid("Number underflow. Attempting to store a number with magnitude smaller than supported range")


def _written(figures: str, scale: int) -> str:
    if scale >= 0:
        return figures + "0" * scale
    if -scale < len(figures):
        return f"{figures[:scale]}.{figures[scale:]}"
    return f"0.{'0' * (-scale - len(figures))}{figures}"


_SCALARS: Mapping[str, Callable[[Any], Any]] = {
    "N": stored_number,
    "B": _binary,
    "BOOL": bool,
    "NULL": _null,
    "SS": _members(_text),
    "NS": _members(stored_number),
    "BS": _members(_binary),
}


def _size(attribute: Typed) -> int:
    ((kind, inner),) = attribute.items()
    if kind == "S":
        return len(inner.encode())
    if kind == "M":
        return 3 + sum(1 + len(name.encode()) + _size(v) for name, v in inner.items())
    if kind == "L":
        return 3 + sum(1 + _size(v) for v in inner)
    return _SIZES[kind](inner)


def _number_size(digits: str) -> int:
    return len(digits.replace("-", "").replace(".", "").strip("0")) // 2 + 2


def _binary_size(text: str) -> int:
    return len(text) * 3 // 4 - text.count("=")


_SIZES: Mapping[str, Callable[[Any], int]] = {
    "N": _number_size,
    "B": _binary_size,
    "BOOL": lambda _: 1,
    "NULL": lambda _: 1,
    "SS": lambda inner: sum(len(v.encode()) for v in inner),
    "NS": lambda inner: sum(map(_number_size, inner)),
    "BS": lambda inner: sum(map(_binary_size, inner)),
}
