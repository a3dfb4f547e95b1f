"""Documents as JSON text for jsonb: exact digits, base64 for binary, sorted arrays for sets."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import orjson

from connectors.postgres.options import Nul
from connectors.postgres.texts import NUL_REFUSED, REPLACEMENT, Unfit, utf8
from replicator.attributes import Malformed, Typed, Typeds, number, plain

_attribute = msgspec.json.Decoder(dict[str, Any])
_NUL = "\\u0000"
_ESCAPE = re.compile(r"\\(u0000|.)")
_PLAIN = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_DEEPEST = 200  # levels; orjson's own limit is 254


class JsonText:
    """JSON texts under one policy for NUL characters."""

    def __init__(self, nul: Nul) -> None:
        self._nul = nul

    def of_item(self, typeds: Typeds) -> str:
        """A whole item."""
        return self.of_typed({"M": typeds})

    def of_raw(self, attribute: msgspec.Raw) -> str | None:
        """One attribute that is not decoded yet; None for null."""
        found = _attribute.decode(attribute)
        return None if "NULL" in found else self.of_typed(found)

    def of_typed(self, attribute: Typed) -> str:
        """One attribute."""
        try:
            # As text at once: orjson's bytes keep the 1 KB they are born with, and a batch of them leaves the caches.
            found = orjson.dumps(plain(attribute)).decode()
        except (Malformed, TypeError, ValueError) as e:
            raise Unfit("is not what DynamoDB sends") from e
        return found if _NUL not in found else self._without_nul(found)

    def of_python(self, value: object) -> str:
        """What a hook returned. Unfit for what JSON has no word for (NaN, objects) and for half surrogates."""
        try:
            found = orjson.dumps(value, default=_default, option=_PLAIN).decode()
        except TypeError as e:  # something rare: say what, or write it the slow way (integers beyond 64 bits)
            if isinstance(e.__cause__, Unfit):
                raise e.__cause__ from None
            found = orjson.dumps(_careful(value, 0)).decode()
        else:
            if "null" in found:  # orjson writes NaN and Infinity as null, without a word
                _careful(value, 0)
        return found if _NUL not in found else self._without_nul(found)

    def _without_nul(self, text: str) -> str:
        replaced = _ESCAPE.sub(lambda e: REPLACEMENT if e[1] == "u0000" else e[0], text)
        if replaced != text and self._nul == "reject":
            raise Unfit(NUL_REFUSED)
        return replaced


def _default(value: object) -> Any:
    """What orjson does not write by itself."""
    match value:
        case Decimal():
            return number(str(_finite(value)))
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(bytes(value)).decode()
        case set() | frozenset():
            return _sorted(value)
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
    try:
        return sorted(members)
    except TypeError:
        raise Unfit("contains a set of unlike members") from None
