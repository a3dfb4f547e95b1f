"""Values as JSON text: exact digits, base64 for binary, sorted arrays for sets. The same for every target."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import repeat
from typing import Any
from uuid import UUID

import orjson

from replicator.attributes import Malformed, Typed, number, plain, typed
from replicator.forms import TOGETHER, Forms, Image
from replicator.item import Amended, Item

_PLAIN = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_NOT_DYNAMODB = "is not what DynamoDB sends"
_DEEPEST = 200  # levels; orjson's own limit is 254


class Unfit(Exception):
    """The value cannot be stored there; the message says why, without the value, to go on after the column's name."""


def of_typed(attribute: Typed) -> str:
    """One attribute in DynamoDB's types."""
    try:
        # As text at once: orjson's bytes keep the 1 KB they are born with, and a batch of them leaves the caches.
        return orjson.dumps(plain(attribute)).decode()
    except (Malformed, TypeError, ValueError) as e:
        raise Unfit(_NOT_DYNAMODB) from e


def of_python(value: object) -> str:
    """What a hook returned. Unfit for what JSON has no word for (NaN, objects) and for half surrogates."""
    return _of_python(value).decode()


def _of_python(value: object) -> bytes:
    try:
        found = orjson.dumps(value, default=_default, option=_PLAIN)
    except TypeError as e:  # something rare: say what, or write it the slow way (integers beyond 64 bits)
        if isinstance(e.__cause__, Unfit):
            raise e.__cause__ from None
        return orjson.dumps(_careful(value, 0))
    if b"null" in found:  # orjson writes NaN and Infinity as null, without a word
        _careful(value, 0)
    return found


class DocumentText:
    """Whole bodies as JSON, in UTF-8: an item as it is, an item with a hook's values in it, or what a hook returned.

    One for each table, because it learns which forms items have.
    """

    def __init__(self) -> None:
        self._image = Forms(plain_image)

    def __call__(self, body: Mapping[str, object]) -> bytes:
        if type(body) is not Item:
            return _of_amended(body) if type(body) is Amended else _of_python(body)
        try:
            return self._image(body.image)
        except (ValueError, TypeError) as e:
            raise Unfit(_NOT_DYNAMODB) from e

    def together(self, bodies: Sequence[Mapping[str, object]]) -> Iterator[bytes | None]:
        """One by one the same for all of them, as far as they can be made together; None for one that cannot."""
        for start in range(0, len(bodies), TOGETHER):
            some = bodies[start : start + TOGETHER]
            alike = set(map(type, some)) == {Item}
            made = self._image.together([item.image for item in some]) if alike else None  # type: ignore[attr-defined]
            yield from made or repeat(None, len(some))


def plain_image(image: Image) -> bytes:
    """The attributes of an image as JSON, decoded and written with care. ValueError, TypeError: no typed JSON."""
    return orjson.dumps(plain({"M": typed(image)}))


def _of_amended(body: Amended) -> bytes:
    """Only what the hook put there is looked at as Python's values."""
    try:
        found = {name: plain(attribute) for name, attribute in body.item.typed.items() if name not in body.changes}
    except Malformed as e:
        raise Unfit(_NOT_DYNAMODB) from e
    changes = {_name(name): orjson.Fragment(_of_python(value)) for name, value in body.changes.items()}
    return orjson.dumps(found | changes)


def utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit("contains half of a surrogate pair, which is no text") from None
    return value


def _default(value: object) -> Any:
    """What orjson does not write by itself."""
    if type(value) is Decimal and value.is_finite():  # nearly always; its text is a JSON literal already
        return orjson.Fragment(str(value))
    match value:
        case set() | frozenset():
            return _sorted(value)
        case Decimal():
            return number(str(_finite(value)))
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(bytes(value)).decode()
        case datetime() | date():
            return value.isoformat()
        case Mapping():
            return dict(value)
        case str():
            return str(value)
    raise Unfit(f"contains a {type(value).__name__}")


def _careful(value: object, depth: int) -> Any:
    """``value`` in a form that orjson surely writes as it is meant."""
    if depth > _DEEPEST:
        raise Unfit(f"is nested more than {_DEEPEST} levels deep")
    match value:
        case None | bool():
            return value
        case str():
            return str(utf8(value))
        case int():
            return orjson.Fragment(str(int(value)))
        case float():
            return _finite(value)
        case Mapping():
            return {_name(name): _careful(inner, depth + 1) for name, inner in value.items()}
        case list() | tuple():
            return [_careful(inner, depth + 1) for inner in value]
        case set() | frozenset():
            return [_careful(inner, depth + 1) for inner in _sorted(value)]
        case UUID():
            return str(value)
    return _default(value)


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise Unfit(f"has a {type(name).__name__} as a name; names are text")
    return str(utf8(name))


def _finite(value: Any) -> Any:
    if not math.isfinite(value):
        raise Unfit("contains NaN or Infinity")
    return value


def _sorted(members: set[Any] | frozenset[Any]) -> list[Any]:
    """As DynamoDB's own sets are sorted here: binary members by what stands for them in JSON."""
    try:
        if bytes not in map(type, members):
            return sorted(members)
        return sorted(members, key=lambda m: base64.b64encode(m) if isinstance(m, bytes) else m)
    except TypeError:
        raise Unfit("contains a set of unlike members") from None
