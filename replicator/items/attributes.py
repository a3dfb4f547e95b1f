"""DynamoDB's typed JSON, exact and lazy: the one decoder for stream records and scanned items.

An image stays raw bytes until it is accessed; a number stays text until its value is needed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import Any, TypeVar

import msgspec
import orjson

Typed = dict[str, Any]  # one attribute value as DynamoDB writes it: {"S": "text"}
Typeds = dict[str, Typed]  # a whole image, decoded one level deep
T = TypeVar("T")

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What a msgspec decoder raises for bytes that are not JSON of its type: also for bad UTF-8 and for deep nesting."""

_image = msgspec.json.Decoder(dict[str, dict[str, Any]])
_WIDE = Context(prec=400, traps=[InvalidOperation, Overflow, Inexact])  # holds every DynamoDB number exactly
_MAX_PLAIN_EXPONENT = 40  # beyond it, canonical numbers are in scientific notation
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


class Malformed(ValueError):
    """Not an image, or not an attribute value, in DynamoDB's typed JSON. The message names types, never values."""


SHAPE_ERRORS = (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What converting a value of the wrong shape raises."""


def typed(image: bytes) -> Typeds:
    """The attributes of an image, each still a one-entry mapping from its type. Malformed if it is not an image."""
    return decoded(_image, image)


def decoded(decoder: msgspec.json.Decoder[T], text: bytes | msgspec.Raw) -> T:
    """``text`` decoded; Malformed if it does not fit the decoder's type."""
    try:
        return decoder.decode(text)
    except DECODE_ERRORS as e:
        raise Malformed(f"not DynamoDB's typed JSON: {e}") from e


def value(attribute: Typed) -> Any:
    """The Python value of one typed attribute. Malformed if it is not an attribute value."""
    try:
        ((kind, inner),) = attribute.items()
        return TO_PYTHON[kind](inner)
    except Malformed:
        raise
    except (*SHAPE_ERRORS, KeyError) as e:
        raise Malformed(f"not a DynamoDB attribute value: {_kinds(attribute)}") from e


def _kinds(attribute: object) -> str:
    """How an error names an invalid value: by the types in it, without its content."""
    return ", ".join(attribute) if isinstance(attribute, dict) else f"a {type(attribute).__name__}"


def _only(kind: type) -> Callable[[Any], Any]:
    def checked(inner: Any) -> Any:
        if type(inner) is not kind:
            raise TypeError(f"a {type(inner).__name__} instead of a {kind.__name__}")
        return inner

    return checked


_text, _bool, _list = _only(str), _only(bool), _only(list)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def exact(digits: str) -> Decimal:
    """The value of a DynamoDB number. Malformed if it is not a finite number."""
    try:
        number = Decimal(digits if type(digits) is str else _text(digits))
    except (ArithmeticError, TypeError) as e:
        raise Malformed("a number attribute that does not hold a number") from e
    if not number.is_finite():
        raise Malformed("a number that is not finite")
    return number


TO_PYTHON: Mapping[str, Callable[[Any], Any]] = {
    "S": _text,
    "N": exact,
    "B": _bytes,
    "BOOL": _bool,
    "NULL": lambda _: None,
    "M": lambda inner: {name: value(v) for name, v in inner.items()},
    "L": lambda inner: [value(v) for v in _list(inner)],
    "SS": lambda inner: frozenset(map(_text, _list(inner))),
    "NS": lambda inner: frozenset(map(exact, _list(inner))),
    "BS": lambda inner: frozenset(map(_bytes, _list(inner))),
}


def from_python(plain_value: object) -> Typed:
    """The typed attribute for a plain Python value, as tests and the in-memory DynamoDB take them.

    TypeError for what DynamoDB cannot hold, floats included: they may have lost digits that a DynamoDB number keeps.
    """
    match plain_value:
        case None:
            return {"NULL": True}
        case bool():
            return {"BOOL": plain_value}
        case str():
            return {"S": plain_value}
        case int() | Decimal():
            if not Decimal(plain_value).is_finite():
                raise TypeError(f"{plain_value} is not a DynamoDB number")
            return {"N": str(plain_value)}
        case bytes() | bytearray() | memoryview():
            return {"B": base64.b64encode(bytes(plain_value)).decode()}
        case Mapping():
            return {"M": {name: from_python(v) for name, v in plain_value.items()}}
        case set() | frozenset():
            return _typed_set(plain_value)
        case list() | tuple():
            return {"L": [from_python(v) for v in plain_value]}
    raise TypeError(f"a {type(plain_value).__name__} is not a DynamoDB value (numbers: int or Decimal)")


def _typed_set(values: set[Any] | frozenset[Any]) -> Typed:
    members = [from_python(v) for v in values]
    kinds = {kind for m in members for kind in m}
    if len(kinds) != 1 or not kinds <= {"S", "N", "B"}:
        raise TypeError("a DynamoDB set must not be empty, and its members must all be str, all numbers or all bytes")
    (kind,) = kinds
    return {f"{kind}S": sorted(m[kind] for m in members)}


def image(item: Mapping[str, object]) -> bytes:
    """The image of an item whose values are plain Python values. TypeError as ``from_python``."""
    return orjson.dumps({name: from_python(v) for name, v in item.items()})


def plain(attribute: Typed) -> Any:
    """One typed attribute as values that orjson writes as plain JSON: exact digits, base64, sorted sets.

    Malformed if it is not an attribute value, as far as that is noticed: text is not checked here.
    """
    try:
        ((kind, inner),) = attribute.items()
        if kind == "S" or kind == "BOOL" or kind == "B":
            return inner
        if kind == "N":
            return number(inner)
        if kind == "M":
            return {name: v["S"] if "S" in v else plain(v) for name, v in inner.items()}
        return _plain_nested(kind, inner)
    except Malformed:
        raise
    except SHAPE_ERRORS as e:
        raise Malformed(f"not a DynamoDB attribute value: {_kinds(attribute)}") from e


def _plain_nested(kind: str, inner: Any) -> Any:
    match kind:
        case "NULL":
            return None
        case "L":
            return [v["S"] if "S" in v else plain(v) for v in _list(inner)]
        case "SS" | "BS":
            return sorted(_list(inner))
        case "NS":
            return [number(n) for n in sorted(_list(inner), key=exact)]
    raise Malformed(f"unknown DynamoDB type {kind!r}")


def number(digits: str) -> orjson.Fragment:
    """A number as a JSON literal with the digits that DynamoDB sent. Malformed if it is not a finite number."""
    if digits.isascii() and digits.isdecimal() and digits[0] != "0":
        return orjson.Fragment(digits)  # nearly every number, and several times faster than the pattern
    if _JSON_NUMBER.fullmatch(digits) is None:  # some emulators keep "+1" or "007" as sent
        digits = str(exact(digits))
    return orjson.Fragment(digits)


def canonical_number(digits: str) -> str:
    """One spelling per value: "1", "1.0" and "1E0" are the same key. Malformed if DynamoDB cannot hold the number."""
    try:
        normalized = _WIDE.normalize(exact(digits))
    except ArithmeticError as e:  # rounding would merge different keys
        raise Malformed("a number outside DynamoDB's range") from e
    if normalized == 0:
        return "0"
    plain = abs(int(normalized.as_tuple().exponent)) <= _MAX_PLAIN_EXPONENT
    return format(normalized, "f") if plain else str(normalized)
