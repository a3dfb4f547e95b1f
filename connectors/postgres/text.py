"""Text for Postgres: NUL characters, JSON for jsonb, and array literals (one text parameter per column).

A JSON array of strings, which ``orjson`` writes fast, is nearly an array literal. They differ in brackets and escapes:
Postgres takes the character after a backslash literally, so only ``\\"`` and ``\\\\`` mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import orjson

from connectors.postgres.options import Nul
from replicator.items import to_json
from replicator.items.attributes import Malformed, Typed, Typeds, plain
from replicator.items.extraction import Image
from replicator.items.json_templates import JsonTemplates
from replicator.items.to_json import Unfit, utf8

_decode_attribute = msgspec.json.Decoder(dict[str, Any])
_JSON_NUL = "\\u0000"
_NULL = b"null"
_NUL_ESCAPE = re.compile(r"\\(u0000|.)")


class JsonText:
    """Makes JSON texts under one policy for NUL characters."""

    def __init__(self, nul: Nul) -> None:
        self._nul = nul
        self._images = JsonTemplates(to_json.plain_image)
        self._attributes = JsonTemplates(_plain_attribute)

    def of_images(self, images: Sequence[Image]) -> list[str]:
        """Whole items, from images that are not decoded. ValueError, TypeError: one is not DynamoDB JSON."""
        return [self._kept(found.decode()) for found in self._images.all(images)]

    def of_raws(self, attributes: Sequence[msgspec.Raw]) -> list[str | None]:
        """Attributes that are not decoded; None for null. ValueError, TypeError: one is not DynamoDB JSON."""
        return [self._kept(a.decode()) if a != _NULL else None for a in self._attributes.all(attributes)]

    def of_item(self, typeds: Typeds) -> str:
        """A whole item."""
        return self.of_typed({"M": typeds})

    def of_typed(self, attribute: Typed) -> str:
        """One attribute."""
        return self._kept(to_json.of_typed(attribute))

    def of_python(self, value: object) -> str:
        """What a hook returned."""
        return self._kept(to_json.of_python(value))

    def _kept(self, text: str) -> str:
        return text if _JSON_NUL not in text else self._without_nul(text)

    def _without_nul(self, text: str) -> str:
        replaced = _NUL_ESCAPE.sub(lambda e: REPLACEMENT if e[1] == "u0000" else e[0], text)
        if replaced != text and self._nul == "reject":
            raise Unfit(NUL_REFUSED)
        return replaced


def _plain_attribute(raw: Image) -> bytes:
    found = _decode_attribute.decode(raw)
    text = orjson.dumps(plain(found))
    if text == _NULL and "NULL" not in found:
        raise Malformed("a null of another type than NULL")
    return text


REPLACEMENT = "\ufffd"
NUL_REFUSED = "contains a NUL character, which Postgres cannot store (nul: replace would store U+FFFD instead)"


def texts(nul: Nul) -> Callable[[str], str]:
    """A function that applies the policy for NUL characters to text. Unfit if they are rejected."""

    def text(value: str) -> str:
        found = utf8(value)
        if "\0" not in found:
            return found
        if nul == "replace":
            return found.replace("\0", REPLACEMENT)
        raise Unfit(NUL_REFUSED)

    return text


_SUSPECT = re.compile(rb'\\[^"\\]')  # may match inside an escaped backslash; then the slow path changes nothing
_ANY_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|(.))")
_MEANING = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class NulFound(Exception):
    """A text contains a NUL character, which Postgres cannot store."""


def literal(values: Sequence[Any]) -> bytes:
    """An array of strings, numbers or booleans; None is NULL. TypeError for text that is not UTF-8; NulFound."""
    return b"{%b}" % quoted_members(orjson.dumps(values)[1:-1])


def quoted_members(members: bytes) -> bytes:
    """Converts the members of a JSON array, UTF-8, to those of an array literal."""
    if b"\\" in members and _SUSPECT.search(members) is not None:
        return _ANY_ESCAPE.sub(_literally, members)
    return members


def _literally(escape: re.Match[bytes]) -> bytes:
    if (code := escape[1]) is not None:
        if code == b"0000":
            raise NulFound
        return chr(int(code, 16)).encode()
    return _MEANING.get(escape[2], escape[0])


def json_literal(documents: Sequence[str | None]) -> bytes:
    """An array of JSON texts by ``orjson``, which have no control characters, so that no escape needs conversion."""
    return b"{%b}" % json_members(documents)


def json_members(documents: Sequence[str | None]) -> bytes:
    return orjson.dumps(documents)[1:-1]


def array(members: Sequence[str]) -> str:
    """One array as a literal, for a column of arrays."""
    return literal(members).decode()
