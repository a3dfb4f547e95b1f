"""The values in images that are all of one form: of many images at once, and of as many leaves as somebody wants."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from replicator.items.leaves import LEAF, OF_KIND, SORTED

TOGETHER = 256  # images that are looked at at once, after as many of the same form
LARGEST = 1 << 20  # bytes of them

_ESCAPES = (rb"\n", rb"\t", rb"\r", rb"\f", rb"\b")  # written as they are read, and without a quote
_END = b"\0"  # of an image, in a row of them: JSON has none

Image = bytes | msgspec.Raw
Sorting = Callable[[Sequence[bytes]], Sequence[bytes]]


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
