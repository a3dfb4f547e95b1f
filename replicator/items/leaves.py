"""The leaves of an image, attributes that hold one scalar or one set: how they are found, and sets as plain JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal

from replicator.items.attributes import exact

# Only valid JSON without escaped quotes is split: there each quote begins or ends a text, and `[^"]*+` is all of one.
# Nothing here backtracks (`*+`, `++`, `?+`), and no leaf begins inside another: time is linear in the image.
_TEXT = rb'"[^"]*+"'
_NUMBER = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_TEXTS = rb"\[" + _TEXT + rb"(?:," + _TEXT + rb")*+\]"
_NUMBERS = rb'\["' + _NUMBER + rb'"(?:,"' + _NUMBER + rb'")*+\]'
LEAF = re.compile(
    rb'\{"(?:[SB]":(?=")|N":"(?=[-0-9])|BOOL":(?=[tf])|(?=[SNB]S":\["))'
    rb"(" + _TEXT + rb"|" + _NUMBER + rb'(?=")|true|false|[SB]S":' + _TEXTS + rb'|NS":' + _NUMBERS + rb')"?+\}'
)  # one group: the value as plain JSON has it, but sets begin with their kind
OF_KIND = {
    b"S": rb'\{"S":(' + _TEXT + rb")\}",
    b"B": rb'\{"B":(' + _TEXT + rb")\}",
    b"N": rb'\{"N":"(' + _NUMBER + rb')"\}',
    b"BOOL": rb'\{"BOOL":(true|false)\}',
    b"SS": rb'\{"SS":(' + _TEXTS + rb")\}",
    b"BS": rb'\{"BS":(' + _TEXTS + rb")\}",
    b"NS": rb'\{"NS":(' + _NUMBERS + rb")\}",
}
SETS = b"SNB"  # how a set begins in the group; nothing else does


def _texts(sets: Sequence[bytes]) -> Sequence[bytes]:
    """UTF-8 has the order of code points. ValueError for escapes, which have not."""
    if b"\\" in b"".join(sets):
        raise ValueError
    found = [members[2:-2].split(b'","') for members in sets]
    in_order = list(map(sorted, found))
    return sets if in_order == found else [b'["%b"]' % b'","'.join(members) for members in in_order]


def _numbers(sets: Sequence[bytes]) -> Sequence[bytes]:
    found = (sorted(members[2:-2].split(b'","'), key=_value) for members in sets)
    return [b"[%b]" % b",".join(members) for members in found]


def _value(digits: bytes) -> Decimal:
    return exact(digits.decode())


SORTED: Mapping[bytes, Callable[[Sequence[bytes]], Sequence[bytes]]] = {b"SS": _texts, b"BS": _texts, b"NS": _numbers}
"""Sets of a kind as sorted arrays: the very ones given where nothing is to be done."""
