"""The values in images that are all of one form: of many images at once, and of as many leaves as somebody wants."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec

from replicator.items.attributes import exact

TOGETHER = 256  # images that are looked at at once, after as many of the same form
LARGEST = 1 << 20  # bytes of them

_ESCAPES = (rb"\n", rb"\t", rb"\r", rb"\f", rb"\b")  # written as they are read, and without a quote
_END = b"\0"  # of an image, in a row of them: JSON has none

Image = bytes | msgspec.Raw
Sorting = Callable[[Sequence[bytes]], Sequence[bytes]]

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


SORTED: Mapping[bytes, Sorting] = {b"SS": _texts, b"BS": _texts, b"NS": _numbers}
"""Sets of a kind as sorted arrays: the very ones given where nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Paths:
    """The leaves of an image: the kind of each, and what lies ``between`` them, before the first and after the last."""

    kinds: Sequence[bytes]
    between: Sequence[bytes]

    def expression(self, wanted: Collection[int] | None = None) -> bytes:
        """What images of this form match, with a group for each leaf, or for those ``wanted`` alone."""
        found = [re.escape(self.between[0])]
        for i, (kind, gap) in enumerate(zip(self.kinds, self.between[1:], strict=True)):
            leaf = OF_KIND[kind]
            found += (leaf if wanted is None or i in wanted else leaf.replace(b"(", b"(?:", 1), re.escape(gap))
        return b"".join(found)

    def sets(self, wanted: Collection[int] | None = None) -> Sequence[tuple[int, Sorting]]:
        """Which of these groups hold sets, and what puts their members in order."""
        kinds = [kind for i, kind in enumerate(self.kinds) if wanted is None or i in wanted]
        return [(i, SORTED[kind]) for i, kind in enumerate(kinds) if kind in SORTED]


def leaves_of(image: bytes) -> Paths:
    return Paths([leaf[0][2:].partition(b'"')[0] for leaf in LEAF.finditer(image)], LEAF.split(image)[::2])


class Values:
    """One expression for many images of a form, and for the values of some of its leaves (None: of all)."""

    __slots__ = ("_rows", "_sets")

    def __init__(self, leaves: Paths, wanted: Collection[int] | None = None) -> None:
        # With the empty group there are two at least, and findall makes tuples.
        self._rows = re.compile(leaves.expression(wanted) + b"()" + _END).findall
        self._sets = leaves.sets(wanted)

    def __call__(self, images: Sequence[Image]) -> Sequence[tuple[bytes, ...]] | None:
        """A row an image, with nothing behind its values; None if not all images are of the form, or not surely."""
        if set(map(type, images)) != {msgspec.Raw}:
            return None
        joined = _END.join([*images, b""])
        try:
            if len(joined) <= LARGEST and is_plain(joined) and (joined.isascii() or joined.decode()):
                return self._of(joined, len(images))
        except ValueError:
            pass
        return None

    def _of(self, images: bytes, count: int) -> Sequence[tuple[bytes, ...]] | None:
        """The same of ``count`` images that each end with ``_END``.

        No part of an image is taken for one: each match holds the end of one image, so none holds that of two, and what
        ends where the outermost map ends began where that began.
        """
        rows = self._rows(images)
        if len(rows) != count:
            return None
        for i, in_order in self._sets:
            sets = [row[i] for row in rows]
            if (found := in_order(sets)) is not sets:
                rows = [(*row[:i], one, *row[i + 1 :]) for row, one in zip(rows, found, strict=True)]
        return rows


def is_plain(images: bytes) -> bool:
    """Whether all escapes are written as they are read, and none is a quote."""
    return b"\\" not in images or images.count(b"\\") == sum(map(images.count, _ESCAPES))
