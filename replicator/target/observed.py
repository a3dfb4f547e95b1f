"""What fields of sampled documents contain: how often, of which types, how long. Pure, and free of values.

A connector proposes columns or a mapping from it (``Inferring``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any

_INT64 = 1 << 63
_DEEPEST = 32  # levels of maps; DynamoDB allows no more
_ISO = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of sampled documents (or of maps in them, or the members of lists).

    ``count``: how many had a value there; ``nulls``: how many had null. ``kinds``: how many values of each kind.
    ``longest``: bytes of the longest text as UTF-8. ``whole``: every number is whole and has 64 bits at most.
    ``moments``: every text is a time with a UTC offset; ``dates``: every text is a date or a time. ``members``: of
    lists and sets. ``fields``: of maps.
    """

    name: str
    count: int
    nulls: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    longest: int = 0
    whole: bool = False
    moments: bool = False
    dates: bool = False
    members: Field | None = None
    fields: tuple[Field, ...] = ()

    def only(self, *kinds: str) -> bool:
        """Whether there are values, and all are of these kinds."""
        return bool(self.kinds) and self.kinds.keys() <= set(kinds)


def observed(documents: Iterable[Mapping[str, Any]], depth: int = 0) -> tuple[Field, ...]:
    """The fields of documents, the most frequent first, then by name."""
    values: dict[str, list[Any]] = {}
    for document in documents:
        for name, value in document.items():
            values.setdefault(str(name), []).append(value)
    fields = (_field(name, given, depth) for name, given in values.items())
    return tuple(sorted(fields, key=lambda f: (-f.count, f.name)))


def _field(name: str, given: Sequence[Any], depth: int) -> Field:
    values = [value for value in given if value is not None]
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if _kind(value) == "number"]
    members = [member for value in values if isinstance(value, list | tuple | Set) for member in value]
    maps = [value for value in values if isinstance(value, Mapping)]
    return Field(
        name=name,
        count=len(values),
        nulls=len(given) - len(values),
        kinds=dict(Counter(map(_kind, values)).most_common()),
        longest=max((len(text.encode(errors="replace")) for text in texts), default=0),
        whole=bool(numbers) and all(map(_is_whole, numbers)),
        moments=bool(texts) and all(_has_offset(text) for text in texts),
        dates=bool(texts) and all(_is_date(text) for text in texts),
        members=_field("", members, depth + 1) if members and depth < _DEEPEST else None,
        fields=observed(maps, depth + 1) if depth < _DEEPEST else (),
    )


_SETS = {"text": "set of texts", "number": "set of numbers", "binary": "set of binaries"}


def _kind(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case str():
            return "text"
        case int() | float() | Decimal():
            return "number"
        case bytes() | bytearray() | memoryview():
            return "binary"
        case Mapping():
            return "map"
        case list() | tuple():
            return "list"
        case Set():
            kinds = {_kind(member) for member in value}
            return _SETS.get(kinds.pop(), "set") if len(kinds) == 1 else "set"
        case date():  # datetime too
            return "time" if isinstance(value, datetime) else "date"
    return "other"


def _is_whole(number: int | float | Decimal) -> bool:
    try:
        return number == int(number) and -_INT64 <= number < _INT64
    except (ValueError, OverflowError):  # NaN, infinity
        return False


def _has_offset(text: str) -> bool:
    try:
        return _ISO.fullmatch(text) is not None and datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _is_date(text: str) -> bool:
    try:
        return _ISO.fullmatch(text) is not None and datetime.fromisoformat(text) is not None
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Proposal:
    """Options for a table, as they are written in a config.

    ``about``: the field that each part of the options is for, by its path in them. ``omitted``: what the options leave
    out and why, a sentence each.
    """

    options: Mapping[str, Any]
    about: Mapping[tuple[str, ...], Field] = field(default_factory=dict)
    omitted: Sequence[str] = ()
