"""Columns of values as Postgres array literals: one text parameter a column, whatever the number of rows.

JSON's array of strings is nearly an array literal, and ``orjson`` writes it in C. The two differ in their brackets and
in escapes: Postgres takes the character after a backslash as it is, so only ``\\"`` and ``\\\\`` mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import orjson

_SUSPECT = re.compile(rb'\\[^"\\]')  # also matches inside an escaped backslash; then the slow path changes nothing
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|(.))")
_MEANING = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class NulFound(Exception):
    """A text contains a NUL character, for which nothing stands that Postgres would take."""


def literal(values: Sequence[Any]) -> bytes:
    """An array of texts (or numbers, or truth values; None is NULL). TypeError for text that is not UTF-8, NulFound."""
    return b"{%b}" % quoted_members(orjson.dumps(values)[1:-1])


def quoted_members(members: bytes) -> bytes:
    """The members of such an array from those of a JSON array, in UTF-8."""
    if b"\\" in members and _SUSPECT.search(members) is not None:
        return _ESCAPE.sub(_literally, members)
    return members


def _literally(escape: re.Match[bytes]) -> bytes:
    if (code := escape[1]) is not None:
        if code == b"0000":
            raise NulFound
        return chr(int(code, 16)).encode()
    return _MEANING.get(escape[2], escape[0])


def json_literal(documents: Sequence[str | None]) -> bytes:
    """An array of JSON texts as ``orjson`` writes them: no control characters in them, so nothing to look for."""
    return b"{%b}" % json_members(documents)


def json_members(documents: Sequence[str | None]) -> bytes:
    return orjson.dumps(documents)[1:-1]


def array(members: Sequence[str]) -> str:
    """One array as the text of its literal, for a column of arrays."""
    return literal(members).decode()
