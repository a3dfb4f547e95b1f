"""Values as JSON text, the same for every target: exact digits, base64 for binary, sorted arrays for sets."""

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
from replicator.items.line_template import LeadingValues, LineTemplate

_PLAIN = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_NOT_DYNAMODB = "is not valid DynamoDB JSON"
_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
_literal = orjson.Fragment
_BREAK = orjson.Fragment(b"\n")
_MAX_DEPTH = 200  # levels of nesting; orjson's limit is 254


class Unfit(Exception):
    """A value cannot be stored. The message says why, without the value, as a predicate: "contains NaN or Infinity"."""


def unreadable(error: BaseException) -> Unfit:
    """The error for a hook's value whose own code raised ``error`` while it was read. Ctrl-C is re-raised."""
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error
    return Unfit(f"contains a value that cannot be read: its own code raised {type(error).__name__}")


def of_typed(attribute: Typed) -> str:
    """One typed attribute as JSON. Unfit if it is not an attribute value."""
    try:
        # str at once: orjson's bytes keep their initial 1 KB buffer, and a batch of those overflows the CPU's caches.
        return orjson.dumps(plain(attribute)).decode()
    except (Malformed, TypeError, ValueError) as e:
        raise Unfit(_NOT_DYNAMODB) from e


def of_python(value: object) -> str:
    """A value from a hook as JSON. Unfit for what JSON cannot express: NaN, objects, half of a surrogate pair."""
    return _of_python(value).decode()


def _of_python(value: object) -> bytes:
    try:
        encoded = orjson.dumps(value, default=_default, option=_PLAIN)
    except TypeError as e:  # rare: either unfit, or an integer beyond 64 bits, which takes the slow path
        if isinstance(e.__cause__, Unfit):
            raise e.__cause__ from None
        return orjson.dumps(_checked(value))
    if b"null" in encoded:  # orjson silently writes NaN and Infinity as null
        _checked(value)
    return encoded


def _checked(value: object) -> Any:
    """``value`` after every part of it was checked; Unfit also where reading it runs code that raises."""
    try:
        return _check(value, 0)
    except Unfit:
        raise
    except BaseException as e:
        raise unreadable(e) from e


def encode_each(texts: Sequence[str]) -> list[bytes]:
    """Each text as JSON. TypeError for half of a surrogate pair."""
    return _cut(_with_breaks(texts), b"[\n,", b",\n,", b"]") if texts else []


def _with_breaks(values: Sequence[object]) -> bytes:
    """At least one value as a JSON array with a line feed before each, to split it at: orjson itself writes none.

    One call for all of them, because allocating orjson's buffer costs as much as encoding a small document.
    """
    parts: list[object] = [_BREAK] * (2 * len(values))
    parts[1::2] = values
    return orjson.dumps(parts, default=_default, option=_PLAIN)


def _cut(text: bytes, before: bytes, between: bytes, after: bytes) -> list[bytes]:
    parts = text.split(between)
    parts[0] = parts[0].removeprefix(before)
    parts[-1] = parts[-1].removesuffix(after)
    return parts


class DocumentText:
    """Encodes documents as UTF-8 JSON: unchanged items, amended items (``item | changes``) and what hooks returned.

    Use one per table, because it learns the shapes of that table's items. Unfit if a document has no JSON.
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
        self, frame: LineTemplate, leading: LeadingValues, bodies: Sequence[Mapping[str, object]]
    ) -> Sequence[bytes] | None:
        """Up to ``extraction.BULK_SIZE`` documents as lines of ``frame``; None if they must be encoded one by one."""
        kinds = set(map(type, bodies))
        if kinds == {Item}:
            return self._image.framed(frame, leading, [item.image for item in bodies])  # type: ignore[attr-defined]
        if kinds == {dict}:
            return _framed(frame, leading, bodies)
        return self._amended(frame, leading, bodies) if kinds == {Amended} else None  # type: ignore[arg-type]

    def _amended(
        self, frame: LineTemplate, leading: LeadingValues, bodies: Sequence[Amended]
    ) -> Sequence[bytes] | None:
        changes = [body.changes for body in bodies]
        names = tuple(changes[0])
        if {tuple(change) for change in changes} != {names}:
            return None
        fields = _fields(changes)
        images = [body.item.image for body in bodies]
        return None if fields is None else self._image.amended(frame, leading, images, names, fields)

    def _of_amended(self, body: Amended) -> bytes:
        """Only the hook's values are encoded from Python; the item's stay as they are."""
        try:
            whole = _raws.decode(self._image(body.item.image))
        except (ValueError, TypeError):  # perhaps only in an attribute that the hook replaced
            return _of_amended(body)
        kept = {name: orjson.Fragment(bytes(raw)) for name, raw in whole.items() if name not in body.changes}
        changes = {_name(name): orjson.Fragment(_of_python(value)) for name, value in body.changes.items()}
        return orjson.dumps(kept | changes)


def _framed(
    frame: LineTemplate, leading: LeadingValues, bodies: Sequence[Mapping[str, object]]
) -> Sequence[bytes] | None:
    fields = _fields(bodies)
    if fields is None or _uses_reserved(frame, bodies, fields):
        return None
    return list(map(frame.around(b"%b").__mod__, map(add, leading, zip(fields, strict=True))))


def _uses_reserved(frame: LineTemplate, bodies: Sequence[Mapping[str, object]], fields: Sequence[bytes]) -> bool:
    """Whether a field has a reserved name. Mostly a search for the name's text already rules that out."""
    if frame.reserved is None or not any(map(contains, fields, repeat(b'"%b' % frame.reserved.encode()))):
        return False
    return any(map(frame.reserves_any, bodies))


def _fields(bodies: Sequence[Mapping[str, object]]) -> Sequence[bytes] | None:
    """The JSON of dictionaries from hooks, without braces; None if one is empty or must be encoded by itself."""
    try:
        text = _with_breaks(bodies)
        fields = _cut(text, b"[\n,{", b"},\n,{", b"}]")
        for body, encoded in zip(bodies, fields, strict=True) if b"null" in text else ():
            if b"null" in encoded:
                _checked(body)
    except (TypeError, ValueError, Unfit):
        return None
    return fields if len(fields) == len(bodies) and all(fields) else None


def plain_image(image: Image) -> bytes:
    """An image as plain JSON by the exact path: decode, then encode. ValueError or TypeError if it is malformed."""
    return orjson.dumps(plain({"M": typed(image)}))


def _of_amended(body: Amended) -> bytes:
    """By the exact path, without the attributes that the hook replaced."""
    try:
        kept = {name: plain(attribute) for name, attribute in body.item.typed.items() if name not in body.changes}
    except Malformed as e:
        raise Unfit(_NOT_DYNAMODB) from e
    changes = {_name(name): orjson.Fragment(_of_python(value)) for name, value in body.changes.items()}
    return orjson.dumps(kept | changes)


def utf8(value: str) -> str:
    """``value``; Unfit if it has no UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unfit("contains half of a surrogate pair, which is not valid text") from None
    return value


def _default(value: object) -> Any:
    """For values that orjson cannot encode itself."""
    if type(value) is Decimal and value.is_finite():  # nearly always; its text is already a JSON literal
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


def _check(value: object, depth: int) -> Any:
    """``value`` in a form that orjson certainly encodes as intended."""
    if depth > _MAX_DEPTH:
        raise Unfit(f"is nested more than {_MAX_DEPTH} levels deep")
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
            return {_name(name): _check(inner, depth + 1) for name, inner in value.items()}
        case list() | tuple():
            return [_check(inner, depth + 1) for inner in value]
        case set() | frozenset():
            return [_check(inner, depth + 1) for inner in _sorted(value)]
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
    """In the order of ``attributes.plain``, so that hooks' sets equal those from images: binary members by base64."""
    try:
        in_order = sorted(members)
    except TypeError:
        raise Unfit("contains a set whose members are of different types") from None
    return sorted(in_order, key=base64.b64encode) if in_order and isinstance(in_order[0], bytes) else in_order
