r"""Bulk-extracts scalar values from images of the same shape, without decoding them.

The leaves of an image are its attributes that hold one scalar or one set; its shape is everything between them: names,
maps, lists, nulls. For each shape there is one regular expression with a group per leaf, which reads many images at
once. An example, with one image in and one row out::

    image   {"id":{"S":"a"},"n":{"N":"12"},"tags":{"SS":["y","x"]}}
    shape   {"id":         ,"n":          ,"tags":                }
    leaves        {"S":"a"}     {"N":"12"}        {"SS":["y","x"]}
    row     (b'"a"', b'12', b'["x","y"]', b'')

The values in a row are plain JSON, sets sorted; the last, empty one only makes every row a tuple. With ``wanted={1}``
the row is ``(b'12', b'')``.

Where ``ValueExtractor`` returns None, the caller must take the exact path, which decodes each image: when an image has
another shape, escapes other than ``\n \t \r \f \b`` or invalid UTF-8, when a set has escapes in it, when the images are
too large together, or when msgspec has not validated them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import msgspec

from replicator.items.attributes import exact

BULK_SIZE = 256  # images extracted at once at most, and images in a row of one shape before that is tried
MAX_BULK_BYTES = 1 << 20  # of all of them

_PLAIN_ESCAPES = (rb"\n", rb"\t", rb"\r", rb"\f", rb"\b")  # the same in any JSON encoder's output, and not a quote
_END = b"\0"  # separates joined images: it never occurs in JSON

Image = bytes | msgspec.Raw
SetSorter = Callable[[Sequence[bytes]], Sequence[bytes]]

# These only ever see valid JSON without escaped quotes: each quote starts or ends a string, and `[^"]*+` is all of one.
# Nothing backtracks (`*+`, `++`, `?+`) and no leaf starts inside another, so matching is linear in the image's size.
_STRING = rb'"[^"]*+"'
_NUMBER = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_STRINGS = rb"\[" + _STRING + rb"(?:," + _STRING + rb")*+\]"
_NUMBERS = rb'\["' + _NUMBER + rb'"(?:,"' + _NUMBER + rb'")*+\]'
LEAF = re.compile(
    rb'\{"(?:[SB]":(?=")|N":"(?=[-0-9])|BOOL":(?=[tf])|(?=[SNB]S":\["))'
    rb"(" + _STRING + rb"|" + _NUMBER + rb'(?=")|true|false|[SB]S":' + _STRINGS + rb'|NS":' + _NUMBERS + rb')"?+\}'
)  # one group: the value as plain JSON, but a set as its kind and its array, `SS":["a"]`
LEAF_OF_KIND = {
    b"S": rb'\{"S":(' + _STRING + rb")\}",
    b"B": rb'\{"B":(' + _STRING + rb")\}",
    b"N": rb'\{"N":"(' + _NUMBER + rb')"\}',
    b"BOOL": rb'\{"BOOL":(true|false)\}',
    b"SS": rb'\{"SS":(' + _STRINGS + rb")\}",
    b"BS": rb'\{"BS":(' + _STRINGS + rb")\}",
    b"NS": rb'\{"NS":(' + _NUMBERS + rb")\}",
}
SET_INITIALS = b"SNB"  # the group of ``LEAF`` starts with one of these if and only if it is a set


def _sort_strings(sets: Sequence[bytes]) -> Sequence[bytes]:
    """UTF-8 sorts like code points. ValueError for escapes, which do not."""
    if b"\\" in b"".join(sets):
        raise ValueError
    given = [members[2:-2].split(b'","') for members in sets]
    in_order = list(map(sorted, given))
    return sets if in_order == given else [b'["%b"]' % b'","'.join(members) for members in in_order]


def _sort_numbers(sets: Sequence[bytes]) -> Sequence[bytes]:
    in_order = (sorted(members[2:-2].split(b'","'), key=_value) for members in sets)
    return [b"[%b]" % b",".join(members) for members in in_order]


def _value(digits: bytes) -> Decimal:
    return exact(digits.decode())


SORT_SETS: Mapping[bytes, SetSorter] = {b"SS": _sort_strings, b"BS": _sort_strings, b"NS": _sort_numbers}
"""By kind: from the arrays of sets to sorted arrays; returns its argument where everything is in order already."""


@dataclass(frozen=True, slots=True)
class LeafLayout:
    """The shape of an image: the kind of each leaf, and the ``gaps`` before, between and after them (one more)."""

    kinds: Sequence[bytes]
    gaps: Sequence[bytes]

    def pattern(self, wanted: Collection[int] | None = None) -> bytes:
        """A regular expression for images of this shape, with a group per leaf, or only for the ``wanted`` ones."""
        parts = [re.escape(self.gaps[0])]
        for i, (kind, gap) in enumerate(zip(self.kinds, self.gaps[1:], strict=True)):
            leaf = LEAF_OF_KIND[kind]
            parts += (leaf if wanted is None or i in wanted else leaf.replace(b"(", b"(?:", 1), re.escape(gap))
        return b"".join(parts)

    def sets(self, wanted: Collection[int] | None = None) -> Sequence[tuple[int, SetSorter]]:
        """Which groups of ``pattern`` hold sets, and how to sort them."""
        kinds = [kind for i, kind in enumerate(self.kinds) if wanted is None or i in wanted]
        return [(i, SORT_SETS[kind]) for i, kind in enumerate(kinds) if kind in SORT_SETS]


def leaf_layout(image: bytes) -> LeafLayout:
    return LeafLayout([leaf[0][2:].partition(b'"')[0] for leaf in LEAF.finditer(image)], LEAF.split(image)[::2])


class ValueExtractor:
    """Reads the values of some leaves (``wanted``; None: all) from many images of one shape. See above."""

    __slots__ = ("_find_rows", "_sets")

    def __init__(self, layout: LeafLayout, wanted: Collection[int] | None = None) -> None:
        # The empty group makes at least two, so that findall returns tuples.
        self._find_rows = re.compile(layout.pattern(wanted) + b"()" + _END).findall
        self._sets = layout.sets(wanted)

    def __call__(self, images: Sequence[Image]) -> Sequence[tuple[bytes, ...]] | None:
        """A row per image; None if some image does not have this shape, or that is uncertain."""
        if set(map(type, images)) != {msgspec.Raw}:
            return None
        joined = _END.join([*images, b""])
        try:
            if len(joined) <= MAX_BULK_BYTES and has_plain_escapes(joined) and (joined.isascii() or joined.decode()):
                return self._rows(joined, len(images))
        except ValueError:
            pass
        return None

    def _rows(self, joined: bytes, count: int) -> Sequence[tuple[bytes, ...]] | None:
        """The rows of ``count`` images that each end with ``_END``.

        A match cannot be part of an image: each holds the end of exactly one image, and what ends where the outermost
        map ends also starts where that map starts.
        """
        rows = self._find_rows(joined)
        if len(rows) != count:
            return None
        for i, sort in self._sets:
            sets = [row[i] for row in rows]
            if (in_order := sort(sets)) is not sets:
                rows = [(*row[:i], members, *row[i + 1 :]) for row, members in zip(rows, in_order, strict=True)]
        return rows


def has_plain_escapes(images: bytes) -> bool:
    """Whether every escape is one that stays the same in plain JSON; none of these is a quote."""
    return b"\\" not in images or images.count(b"\\") == sum(map(images.count, _PLAIN_ESCAPES))
