"""Values as JSON text: exact digits, base64 for binary, sorted arrays for sets. The same for every target."""

from __future__ import annotations

import base64
import math
import signal
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import repeat
from operator import add, contains
from typing import Any
from uuid import UUID

import msgspec
import orjson

from replicator.items.attributes import Malformed, Typed, number, plain, typed
from replicator.items.extraction import Image
from replicator.items.item import Amended, Item
from replicator.items.json_templates import JsonTemplates
from replicator.items.line_template import Given, LineTemplate

_PLAIN = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_NOT_DYNAMODB = "is not valid DynamoDB JSON"
_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
_literal = orjson.Fragment
_BREAK = orjson.Fragment(b"\n")
_DEEPEST = 200  # levels; orjson's own limit is 254


class Unfit(Exception):
    """The value cannot be stored there; the message says why, without the value, to go on after the column's name."""


def unreadable(error: BaseException) -> Unfit:
    """What is said of a hook's value whose own code raised ``error`` while it was read. Ctrl-C is raised as it is."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error
    return Unfit(f"contains a value that cannot be read: its own code raised {type(error).__name__}")


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
        return orjson.dumps(_read(value))
    if b"null" in found:  # orjson writes NaN and Infinity as null, without a word
        _read(value)
    return found


def _read(value: object) -> Any:
    """``value`` read with care; Unfit also where that runs code of its own, which raises."""
    try:
        return _careful(value, 0)
    except Unfit:
        raise
    except BaseException as e:
        raise unreadable(e) from e


def separately(texts: Sequence[str]) -> list[bytes]:
    """Each text as JSON. TypeError for half surrogates."""
    return _cut(_with_breaks(texts), b"[\n,", b",\n,", b"]") if texts else []


def _with_breaks(values: Sequence[object]) -> bytes:
    """At least one value as a JSON array with a line feed before each, which is in none: orjson writes no line feed.

    In one go, because the buffer that each of orjson's texts begins with costs as much as a small document.
    """
    parts: list[object] = [_BREAK] * (2 * len(values))
    parts[1::2] = values
    return orjson.dumps(parts, default=_default, option=_PLAIN)


def _cut(text: bytes, before: bytes, between: bytes, after: bytes) -> list[bytes]:
    found = text.split(between)
    found[0] = found[0].removeprefix(before)
    found[-1] = found[-1].removesuffix(after)
    return found


class DocumentText:
    """Whole bodies as JSON, in UTF-8: an item as it is, an item with a hook's values in it, or what a hook returned.

    One for each table, because it learns which forms items have.
    """

    def __init__(self) -> None:
        self._image = JsonTemplates(plain_image)

    def __call__(self, body: Mapping[str, object]) -> bytes:
        if type(body) is not Item:
            return self._of_amended(body) if type(body) is Amended else _of_python(body)
        try:
            return self._image(body.image)
        except (ValueError, TypeError) as e:
            raise Unfit(_NOT_DYNAMODB) from e

    def framed(
        self, frame: LineTemplate, given: Given, bodies: Sequence[Mapping[str, object]]
    ) -> Sequence[bytes] | None:
        """Up to ``values.TOGETHER`` bodies as lines of ``frame``; None if they have to be looked at one by one."""
        kinds = set(map(type, bodies))
        if kinds == {Item}:
            return self._image.framed(frame, given, [item.image for item in bodies])  # type: ignore[attr-defined]
        if kinds == {dict}:
            return _framed(frame, given, bodies)
        return self._amended(frame, given, bodies) if kinds == {Amended} else None  # type: ignore[arg-type]

    def _amended(self, frame: LineTemplate, given: Given, bodies: Sequence[Amended]) -> Sequence[bytes] | None:
        changes = [body.changes for body in bodies]
        names = tuple(changes[0])
        if {tuple(change) for change in changes} != {names}:
            return None
        fields = _fields(changes)
        images = [body.item.image for body in bodies]
        return None if fields is None else self._image.amended(frame, given, images, names, fields)

    def _of_amended(self, body: Amended) -> bytes:
        """Only what the hook put there is looked at as Python's values."""
        try:
            whole = _raws.decode(self._image(body.item.image))
        except (ValueError, TypeError):  # what the hook replaced may be to blame
            return _of_amended(body)
        found = {name: orjson.Fragment(bytes(raw)) for name, raw in whole.items() if name not in body.changes}
        changes = {_name(name): orjson.Fragment(_of_python(value)) for name, value in body.changes.items()}
        return orjson.dumps(found | changes)


def _framed(frame: LineTemplate, given: Given, bodies: Sequence[Mapping[str, object]]) -> Sequence[bytes] | None:
    fields = _fields(bodies)
    if fields is None or _taken(frame, bodies, fields):
        return None
    return list(map(frame.around(b"%b").__mod__, map(add, given, zip(fields, strict=True))))


def _taken(frame: LineTemplate, bodies: Sequence[Mapping[str, object]], fields: Sequence[bytes]) -> bool:
    """Whether a field has a name that is taken. Most often no text looks like one."""
    if frame.taken is None or not any(map(contains, fields, repeat(b'"%b' % frame.taken.encode()))):
        return False
    return any(map(frame.takes_any, bodies))


def _fields(bodies: Sequence[Mapping[str, object]]) -> Sequence[bytes] | None:
    """The JSON of dictionaries from hooks, without the braces; None if one is empty or takes a closer look."""
    try:
        text = _with_breaks(bodies)
        fields = _cut(text, b"[\n,{", b"},\n,{", b"}]")
        for body, found in zip(bodies, fields, strict=True) if b"null" in text else ():
            if b"null" in found:
                _read(body)
    except (TypeError, ValueError, Unfit):
        return None
    return fields if len(fields) == len(bodies) and all(fields) else None


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
        raise Unfit("contains half of a surrogate pair, which is not valid text") from None
    return value


def _default(value: object) -> Any:
    """What orjson does not write by itself."""
    if type(value) is Decimal and value.is_finite():  # nearly always; its text is a JSON literal already
        return _literal(str(value))
    if type(value) is frozenset:
        return _sorted(value)
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
        raise Unfit(f"has a {type(name).__name__} as a name; names must be strings")
    return str(utf8(name))


def _finite(value: Any) -> Any:
    if not math.isfinite(value):
        raise Unfit("contains NaN or Infinity")
    return value


def _sorted(members: set[Any] | frozenset[Any]) -> list[Any]:
    """As DynamoDB's own sets are sorted here: binary members by what stands for them in JSON."""
    try:
        found = sorted(members)
    except TypeError:
        raise Unfit("contains a set whose members are of different types") from None
    return sorted(found, key=base64.b64encode) if found and isinstance(found[0], bytes) else found
