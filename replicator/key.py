"""Primary keys of items: schema, values and text form."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import orjson

from replicator.items.attributes import Malformed, canonical_number, from_python

Key = tuple[str, ...]
"""An item's primary key, partition key first: each value as the text in its typed JSON, numbers in canonical form.

The types are known from the table's ``KeySchema``, so equal keys are equal tuples, whether streamed or scanned.
"""

_LONGEST = (2048, 1024)  # bytes of a partition key, and of a sort key
_EXACT = Context(prec=200)
_LONGEST_KEY_TEXT = 512  # bytes; every checkpoint store and target can index that


@dataclass(frozen=True, slots=True)
class KeyAttribute:
    """One attribute of a primary key; ``kind`` is S, N or B."""

    name: str
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in ("S", "N", "B"):
            raise ValueError(f"a key attribute is S, N or B, not {self.kind!r}")


@dataclass(frozen=True, slots=True)
class KeySchema:
    """The attributes of a primary key, partition key first."""

    attributes: tuple[KeyAttribute, ...]

    def __post_init__(self) -> None:
        if not self.attributes:
            raise ValueError("a primary key has at least one attribute")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.attributes)

    def key(self, typeds: Mapping[str, Mapping[str, Any]]) -> Key:
        """The key in an image (or in a record's Keys)."""
        return tuple(
            canonical_number(typeds[a.name]["N"]) if a.kind == "N" else typeds[a.name][a.kind] for a in self.attributes
        )

    def typed(self, key: Key) -> dict[str, dict[str, str]]:
        """The key in DynamoDB's typed JSON, for requests."""
        return {a.name: {a.kind: text} for a, text in zip(self.attributes, key, strict=True)}

    def allows(self, key: object) -> bool:
        """Whether an item can have this key: DynamoDB refuses a request for another one."""
        if not isinstance(key, (list, tuple)) or len(key) != len(self.attributes):
            return False
        return all(_allows(a.kind, text, most) for a, text, most in zip(self.attributes, key, _LONGEST, strict=False))

    def values(self, key: Key) -> dict[str, str | Decimal | bytes]:
        """The key as Python values by attribute name."""
        return {a.name: _VALUE[a.kind](text) for a, text in zip(self.attributes, key, strict=True)}

    def from_json(self, text: str) -> Key:
        """A key as users write it: a JSON object, binary values in base64. ValueError says what is wrong with it."""
        try:
            values = json.loads(text, parse_float=Decimal)
        except ValueError as e:
            raise ValueError(f"invalid JSON: {e}") from e
        if not isinstance(values, dict):
            raise ValueError("a key is a JSON object such as " + json.dumps(dict.fromkeys(self.names, "...")))
        binary = {a.name for a in self.attributes if a.kind == "B"}
        return self.parse({n: _decoded(n, v) if n in binary else v for n, v in values.items()})

    def parse(self, given: Mapping[str, object]) -> Key:
        """A key from plain Python values; ValueError says which attribute is missing or of the wrong kind."""
        if set(given) != set(self.names):
            raise ValueError(f"the key has the attributes {', '.join(self.names)}, not {', '.join(given) or 'none'}")
        return self.key({a.name: _typed(a, given[a.name]) for a in self.attributes})


def _allows(kind: str, text: object, most: int) -> bool:
    if not isinstance(text, str):
        return False
    try:
        if kind == "N":
            return canonical_number(text) == text and _is_number(Decimal(text))
        if kind == "S":
            return 1 <= len(text.encode()) <= most
        value = base64.b64decode(text, validate=True)
    except (Malformed, ValueError):
        return False
    return 1 <= len(value) <= most and base64.b64encode(value).decode() == text


def _is_number(value: Decimal) -> bool:
    """Whether DynamoDB can hold it: 38 digits, and 1E-130 to 9.99E+125."""
    digits = value.normalize(_EXACT).as_tuple().digits
    return not value or (len(digits) <= 38 and -130 <= value.adjusted() <= 125)


def _decoded(name: str, given: object) -> bytes:
    try:
        return base64.b64decode(given, validate=True)  # type: ignore[arg-type]
    except (TypeError, ValueError) as e:
        raise ValueError(f'key attribute {name} is binary: write it in base64, such as "AP8="') from e


def _typed(attribute: KeyAttribute, given: object) -> dict[str, Any]:
    try:
        typed = from_python(given)
    except TypeError as e:
        raise ValueError(f"key attribute {attribute.name}: {e}") from e
    if attribute.kind not in typed:
        raise ValueError(f"key attribute {attribute.name} is of type {_WRITTEN[attribute.kind]}")
    return typed


_WRITTEN: Mapping[str, str] = {
    "S": 'S (string): write it in quotes, such as "5"',
    "N": "N (number): write it without quotes, such as 5",
    "B": "B (binary)",
}
_VALUE: Mapping[str, Callable[[str], Any]] = {"S": str, "N": Decimal, "B": base64.b64decode}


def key_text(key: Key) -> str:
    """A key as unique, readable text of at most 512 bytes; longer keys are hashed."""
    text = orjson.dumps(key)
    if len(text) <= _LONGEST_KEY_TEXT:
        return text.decode()
    return f"sha256:{hashlib.sha256(text).hexdigest()}"
