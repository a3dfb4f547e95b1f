"""Columns of images that are all of one form: cut out by one expression, and never decoded.

Between the pieces of a form a text is as an array literal has it, a number too. Whatever is not surely so is left to
the ways that look at each value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from connectors.postgres.columns import UNUSUAL, times
from connectors.postgres.table_schema import BodyColumn
from connectors.postgres.text import json_members, quoted_members
from replicator.items.attributes import Malformed
from replicator.items.extraction import BULK_SIZE, Image, ValueExtractor
from replicator.items.json_templates import FastTemplate, fast_template
from replicator.items.line_template import fields_of, template
from replicator.items.to_json import plain_image

FEWEST = 64  # images for which it is worth it
SELDOMEST = 64  # batches between two tries, where images are not alike
MOST_CUTS = 16  # hooks put few different sets of attributes in place

_INTEGERS = re.compile(rb"(?:(?:-?[1-9][0-9]{0,17}|0),)*+")
Columns = Sequence[Sequence[bytes]]
"""For each leaf that is wanted its values, one an image."""
Way = Callable[[Columns], bytes]
"""The members of the array literal of a column, without its brackets."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """Some columns of images of one form: the values they need, and how each is made of them."""

    values: ValueExtractor
    ways: Mapping[str, Way]

    def __call__(self, images: Sequence[Image]) -> Mapping[str, bytes] | None:
        """A literal for each column for which there is one; None if not all images are of the form.

        Whatever is made of some images is used up before the next ones are looked at: as long as it is at hand.
        """
        made: dict[str, list[bytes]] = {name: [] for name in self.ways}
        for start in range(0, len(images), BULK_SIZE):
            rows = self.values(images[start : start + BULK_SIZE])
            if rows is None:
                return None
            values = list(zip(*rows, strict=True))
            for name, way in self.ways.items():
                made[name].append(_members(way, values))
        return {name: b"{%b}" % b",".join(members) for name, members in made.items() if all(members)}


class ColumnTemplates:
    """The columns of one table. Learns the form of an image, and tries it on those after it."""

    def __init__(self, columns: Sequence[BodyColumn]) -> None:
        counts = Counter(c.attribute for c in columns)
        taken = (c for c in columns if c.attribute and counts[c.attribute] == 1 and not c.inside)
        self._columns = {c.attribute: c for c in taken if c.attribute}
        self._form: FastTemplate | None = None
        self._cuts: dict[frozenset[str], Cuts | None] = {}  # of that form, by the columns that are left out
        self._pause = self._left = 0  # batches to let pass after one that was not alike, and how many of them are left

    def __call__(self, images: Sequence[Image], but: frozenset[str]) -> Mapping[str, bytes]:
        """Literals by the column's attribute, as many as there are in this way; none of ``but``."""
        if len(images) < FEWEST or self._columns.keys() <= but:
            return {}
        if self._left:
            self._left -= 1
            return {}
        found = self._cut(images, but)
        if found is None:
            self._learn(bytes(images[-1]))
            found = self._cut(images, but)
        if found is None:
            self._left = self._pause = min(SELDOMEST, 2 * self._pause + 1)
            return {}
        self._pause = 0
        return found

    def _learn(self, image: bytes) -> None:
        self._cuts = {}
        try:
            self._form = fast_template(image, plain_image)
        except (ValueError, TypeError, Malformed):
            self._form = None

    def _cut(self, images: Sequence[Image], but: frozenset[str]) -> Mapping[str, bytes] | None:
        """None if not all images are of the form."""
        if self._form is None:
            return None
        if but not in self._cuts:
            self._cuts = self._cuts if len(self._cuts) < MOST_CUTS else {}
            columns = {name: column for name, column in self._columns.items() if name not in but}
            self._cuts[but] = _cuts(self._form, columns)
        cuts = self._cuts[but]
        return {} if cuts is None else cuts(images)


def _members(way: Way, values: Columns) -> bytes:
    """Empty where some value is unusual."""
    try:
        return way(values)
    except UNUSUAL:
        return b""


def _cuts(form: FastTemplate, columns: Mapping[str, BodyColumn]) -> Cuts | None:
    """None where no column can be made in this way."""
    ways: dict[str, Way] = {}
    wanted: list[int] = []
    for name, first, around in fields_of(form.pieces):
        column = columns.get(name)
        if column is None or len(around) == 1:  # no value varies in it: it may be null
            continue
        way = _way(column.type, form.layout.kinds[first], around, len(wanted))
        if way is not None:
            ways[name] = way
            wanted += range(first, first + len(around) - 1)
    return Cuts(ValueExtractor(form.layout, frozenset(wanted)), ways) if ways else None


def _way(type: str, kind: bytes, around: Sequence[bytes], at: int) -> Way | None:
    """How a column of this type is made; its values begin ``at`` that place."""
    if type == "jsonb":
        return _json(at, around)
    way = _WAYS.get((type, kind)) if around == [b"", b""] else None
    return None if way is None else _of_one(at, way)


def _of_one(at: int, way: Callable[[Sequence[bytes]], bytes]) -> Way:
    return lambda values: way(values[at])


def _json(at: int, around: Sequence[bytes]) -> Way:
    if around == [b"", b""]:
        return lambda values: json_members([text.decode() for text in values[at]])
    made, end = template(around), at + len(around) - 1
    return lambda values: json_members([(made % row).decode() for row in zip(*values[at:end], strict=True)])


def _integers(values: Sequence[bytes]) -> bytes:
    found = b",".join(values)
    if _INTEGERS.fullmatch(found + b",") is None:
        raise ValueError
    return found


_WAYS: Mapping[tuple[str, bytes], Callable[[Sequence[bytes]], bytes]] = {
    ("text", b"S"): lambda values: quoted_members(b",".join(values)),
    ("numeric", b"N"): b",".join,
    ("bigint", b"N"): _integers,
    ("boolean", b"BOOL"): b",".join,
    ("timestamptz", b"S"): lambda values: times([value[1:-1].decode() for value in values])[1:-1],
}
