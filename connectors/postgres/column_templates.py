r"""Builds columns from images of one shape: one regular expression cuts the values out, and nothing is decoded.

An example. A table has the columns ``name text``, ``total numeric`` and ``size jsonb``. Two images come in::

    {"name":{"S":"Ann"},"total":{"N":"7.5"},"size":{"M":{"w":{"N":"3"}}}}
    {"name":{"S":"Bob"},"total":{"N":"8"},"size":{"M":{"w":{"N":"4"}}}}

The shape is learned from the last image of a batch (see ``json_templates``). Its expression cuts the leaves out of each
image, and they are put together by column::

    "Ann","Bob"    7.5,8    3,4

One array literal per column comes out::

    {"Ann","Bob"}                       text: a JSON string is an array member, except for some escapes
    {7.5,8}                             numeric: as it is
    {"{\"w\":3}","{\"w\":4}"}           jsonb: between the template's pieces, then quoted

All other columns of the batch take the exact path (``ColumnEncoder``):

* of types that are not in ``_BUILDERS``, from inside a map, or two of them made from one attribute;
* those without a varying value in the shape, or whose attribute has another type than the column expects;
* those with an unusual value in this batch: a fraction or more than 18 digits for bigint, a time without an offset.

So do all columns of a batch with fewer than ``MIN_IMAGES`` images or with an image of another shape. After such a
batch the next 1, 3, 7, … ``MAX_PAUSE`` batches are not tried.
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

MIN_IMAGES = 64  # fewer are not worth it
MAX_PAUSE = 64  # batches without a try while images differ
MAX_EXTRACTORS = 16  # hooks replace few different sets of attributes

_INTEGERS = re.compile(rb"(?:(?:-?[1-9][0-9]{0,17}|0),)*+")
Columns = Sequence[Sequence[bytes]]
"""The values of each leaf that is needed, one per image."""
Builder = Callable[[Columns], bytes]
"""The members of the array literal of a column, without its brackets."""


@dataclass(frozen=True, slots=True)
class _Extractor:
    """Some columns of images of one shape: the values they need, and how each is built from them."""

    values: ValueExtractor
    builders: Mapping[str, Builder]

    def __call__(self, images: Sequence[Image]) -> Mapping[str, bytes] | None:
        """Literals by column, without those that have an unusual value; None if an image has another shape.

        Works through a few images at a time, while their values are in the CPU's cache.
        """
        made: dict[str, list[bytes]] = {name: [] for name in self.builders}
        for start in range(0, len(images), BULK_SIZE):
            rows = self.values(images[start : start + BULK_SIZE])
            if rows is None:
                return None
            values = list(zip(*rows, strict=True))
            for name, builder in self.builders.items():
                made[name].append(_members(builder, values))
        return {name: b"{%b}" % b",".join(members) for name, members in made.items() if all(members)}


class ColumnTemplates:
    """The columns of one table. Learns the shape of an image, and tries it on those that follow."""

    def __init__(self, columns: Sequence[BodyColumn]) -> None:
        counts = Counter(c.attribute for c in columns)
        usable = (c for c in columns if c.attribute and counts[c.attribute] == 1 and not c.inside)
        self._columns = {c.attribute: c for c in usable if c.attribute}
        self._template: FastTemplate | None = None
        self._extractors: dict[frozenset[str], _Extractor | None] = {}  # of that template, by the attributes left out
        self._pause = self._left = 0  # batches to skip after one that differed, and how many of them are left

    def __call__(self, images: Sequence[Image], but: frozenset[str]) -> Mapping[str, bytes]:
        """Literals by attribute, for as many columns as possible; none for those in ``but``."""
        if len(images) < MIN_IMAGES or self._columns.keys() <= but:
            return {}
        if self._left:
            self._left -= 1
            return {}
        literals = self._cut(images, but)
        if literals is None:
            self._learn(bytes(images[-1]))
            literals = self._cut(images, but)
        if literals is None:
            self._left = self._pause = min(MAX_PAUSE, 2 * self._pause + 1)
            return {}
        self._pause = 0
        return literals

    def _learn(self, image: bytes) -> None:
        self._extractors = {}
        try:
            self._template = fast_template(image, plain_image)
        except (ValueError, TypeError, Malformed):
            self._template = None

    def _cut(self, images: Sequence[Image], but: frozenset[str]) -> Mapping[str, bytes] | None:
        """None if an image has another shape."""
        if self._template is None:
            return None
        if but not in self._extractors:
            self._extractors = self._extractors if len(self._extractors) < MAX_EXTRACTORS else {}
            columns = {name: column for name, column in self._columns.items() if name not in but}
            self._extractors[but] = _extractor(self._template, columns)
        extractor = self._extractors[but]
        return {} if extractor is None else extractor(images)


def _members(builder: Builder, values: Columns) -> bytes:
    """Empty if a value is unusual."""
    try:
        return builder(values)
    except UNUSUAL:
        return b""


def _extractor(images: FastTemplate, columns: Mapping[str, BodyColumn]) -> _Extractor | None:
    """None if there is no such column."""
    builders: dict[str, Builder] = {}
    wanted: list[int] = []
    for name, first, around in fields_of(images.pieces):
        column = columns.get(name)
        if column is None or len(around) == 1:  # no varying value: it may be null
            continue
        builder = _builder(column.type, images.layout.kinds[first], around, len(wanted))
        if builder is not None:
            builders[name] = builder
            wanted += range(first, first + len(around) - 1)
    return _Extractor(ValueExtractor(images.layout, frozenset(wanted)), builders) if builders else None


def _builder(type: str, kind: bytes, around: Sequence[bytes], at: int) -> Builder | None:
    """How a column of this type is built from its values, which start at index ``at``; None on the exact path."""
    if type == "jsonb":
        return _json(at, around)
    builder = _BUILDERS.get((type, kind)) if around == [b"", b""] else None
    return None if builder is None else _of_one(at, builder)


def _of_one(at: int, builder: Callable[[Sequence[bytes]], bytes]) -> Builder:
    return lambda values: builder(values[at])


def _json(at: int, around: Sequence[bytes]) -> Builder:
    if around == [b"", b""]:
        return lambda values: json_members([text.decode() for text in values[at]])
    made, end = template(around), at + len(around) - 1
    return lambda values: json_members([(made % row).decode() for row in zip(*values[at:end], strict=True)])


def _integers(values: Sequence[bytes]) -> bytes:
    members = b",".join(values)
    if _INTEGERS.fullmatch(members + b",") is None:
        raise ValueError
    return members


_BUILDERS: Mapping[tuple[str, bytes], Callable[[Sequence[bytes]], bytes]] = {
    ("text", b"S"): lambda values: quoted_members(b",".join(values)),
    ("numeric", b"N"): b",".join,
    ("bigint", b"N"): _integers,
    ("boolean", b"BOOL"): b",".join,
    ("timestamptz", b"S"): lambda values: times([value[1:-1].decode() for value in values])[1:-1],
}
