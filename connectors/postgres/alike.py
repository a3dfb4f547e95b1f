"""Columns of images that are all of one form: cut out by one expression, and never decoded.

Between the pieces of a form a text is as an array literal has it, a number too. Whatever is not surely so is left to
the ways that look at each value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from connectors.postgres.columns import UNUSUAL, times
from connectors.postgres.literals import json_literal, quoted_literal
from connectors.postgres.shape import BodyColumn
from replicator.attributes import Malformed
from replicator.forms import TOGETHER, Image, Quick, learnt
from replicator.frame import fields_of, template
from replicator.json_text import plain_image

FEWEST = 64  # images for which it is worth it
SELDOMEST = 64  # batches between two tries, where images are not alike

_INTEGERS = re.compile(rb"(?:(?:-?[1-9][0-9]{0,17}|0),)*+")
Values = Sequence[Sequence[bytes]]
"""For each leaf of the form its values, one an image."""
Cut = Callable[[Values], bytes]


class Alike:
    """The columns of one table. Learns the form of an image, and tries it on those after it."""

    def __init__(self, columns: Sequence[BodyColumn]) -> None:
        counts = Counter(c.attribute for c in columns)
        self._columns = {c.attribute: c for c in columns if c.attribute and counts[c.attribute] == 1}
        self._quick: Quick | None = None
        self._cuts: Mapping[str, Cut] = {}
        self._pause = self._left = 0  # batches to let pass after one that was not alike, and how many of them are left

    def __call__(self, images: Sequence[Image], but: frozenset[str]) -> Mapping[str, bytes]:
        """Literals by the column's attribute, as many as there are in this way; none of ``but``."""
        if len(images) < FEWEST or not self._columns:
            return {}
        if self._left:
            self._left -= 1
            return {}
        values = self._values(images) or self._learn(images)
        if values is None:
            self._left = self._pause = min(SELDOMEST, 2 * self._pause + 1)
            return {}
        self._pause = 0
        return {
            name: literal for name, cut in self._cuts.items() if name not in but and (literal := _made(cut, values))
        }

    def _learn(self, images: Sequence[Image]) -> Values | None:
        try:
            self._quick = learnt(bytes(images[-1]), plain_image)
        except (ValueError, TypeError, Malformed):
            self._quick = None
        self._cuts = {} if self._quick is None else _cuts(self._quick, self._columns)
        return self._values(images)

    def _values(self, images: Sequence[Image]) -> Values | None:
        if self._quick is None:
            return None
        rows: list[tuple[bytes, ...]] = []
        for start in range(0, len(images), TOGETHER):
            found = self._quick.values(images[start : start + TOGETHER])
            if found is None:
                return None
            rows += found
        return list(zip(*rows, strict=True))


def _made(cut: Cut, values: Values) -> bytes:
    try:
        return cut(values)
    except UNUSUAL:
        return b""


def _cuts(quick: Quick, columns: Mapping[str, BodyColumn]) -> Mapping[str, Cut]:
    found: dict[str, Cut] = {}
    for name, at, around in fields_of(quick.pieces):
        column = columns.get(name)
        if column is None or len(around) == 1:  # no value varies in it: it may be null
            continue
        if column.type == "jsonb":
            found[name] = _json(at, around)
        elif around == [b"", b""] and (way := _WAYS.get((column.type, quick.kinds[at]))) is not None:
            found[name] = _of_one(at, way)
    return found


def _of_one(at: int, way: Callable[[Sequence[bytes]], bytes]) -> Cut:
    return lambda values: way(values[at])


def _json(at: int, around: Sequence[bytes]) -> Cut:
    if around == [b"", b""]:
        return lambda values: json_literal([text.decode() for text in values[at]])
    made, end = template(around), at + len(around) - 1
    return lambda values: json_literal([(made % row).decode() for row in zip(*values[at:end], strict=True)])


def _bare(values: Sequence[bytes]) -> bytes:
    return b"{" + b",".join(values) + b"}"


def _integers(values: Sequence[bytes]) -> bytes:
    if _INTEGERS.fullmatch(b",".join([*values, b""])) is None:
        raise ValueError
    return _bare(values)


def _times(values: Sequence[bytes]) -> bytes:
    return times([value[1:-1].decode() for value in values])


_WAYS: Mapping[tuple[str, bytes], Callable[[Sequence[bytes]], bytes]] = {
    ("text", b"S"): lambda values: quoted_literal(b",".join(values)),
    ("numeric", b"N"): _bare,
    ("bigint", b"N"): _integers,
    ("boolean", b"BOOL"): _bare,
    ("timestamptz", b"S"): _times,
}
