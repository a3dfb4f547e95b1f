r"""Converts typed JSON to plain JSON without decoding: a table's items have few shapes, and only their values differ.

An example. One image comes in::

    {"id":{"S":"a"},"n":{"N":"12"},"tags":{"SS":["y","x"]}}

It is cut at its leaves (see ``extraction``). What is left is its shape::

    {"id":   ,"n":   ,"tags":   }

A shape that is seen for the first time is only remembered. The second time, its template is made: the exact path
converts an image that has a marker in place of each leaf, and its output is cut at the markers::

    {"id":{"SS":["0-0"]},"n":{"SS":["0-1"]},"tags":{"SS":["0-2"]}}      into the exact path
    {"id":["0-0"],"n":["0-1"],"tags":["0-2"]}                            out of it
    {"id":       ,"n":       ,"tags":       }                            the template's pieces

From then on, the values of each image of that shape go between these pieces::

    {"id":"a","n":12,"tags":["x","y"]}

The output is what the exact path (decode, then encode) would make, byte for byte. An image takes the exact path itself
if it has escapes other than ``\n \t \r \f \b``, sets with escapes, invalid JSON or UTF-8, or a shape that is new, has
no leaves or exceeds ``MAX_SHAPE_BYTES``. Numbers spelled as JSON does not allow ("+1") are part of the shape.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from operator import add

import msgspec

from replicator.items.attributes import DECODE_ERRORS
from replicator.items.extraction import (
    BULK_SIZE,
    LEAF,
    SET_INITIALS,
    SORT_SETS,
    Image,
    ValueExtractor,
    has_plain_escapes,
    leaf_layout,
)
from replicator.items.line_template import LeadingValues, LineTemplate, ValueSelector, without

MAX_TEMPLATES = 256
MAX_SHAPE_BYTES = 4096
FAST_AFTER = 256  # images of a shape after which compiling a regular expression for it pays off
MAX_FAST_LEAVES = 100  # in such an expression
UNKNOWN_LIMIT = 64  # images of unknown shape in a row after which only every ``SAMPLE_EVERY``-th is cut at its leaves
SAMPLE_EVERY = 16

_json = msgspec.json.Decoder(msgspec.Raw)  # validates JSON without building values

Exact = Callable[[Image], bytes]


class JsonTemplate:
    """The pieces of plain JSON between the leaves of one shape, and how many images had that shape."""

    __slots__ = ("fast", "images", "pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.images = 0
        self.fast: FastTemplate | None = None

    def fill(self, parts: list[bytes]) -> bytes:
        """The plain JSON of an image that was split into ``parts`` by ``LEAF``. Overwrites ``parts``."""
        parts[1::2] = [SORT_SETS[v[:2]]([v[4:]])[0] if v[0] in SET_INITIALS else v for v in parts[1::2]]
        parts[::2] = self.pieces
        return b"".join(parts)


class FastTemplate:
    """A template with one regular expression for all images of its shape whose leaves are of the same kinds."""

    __slots__ = ("_amended", "_frame", "_framed", "_sets", "_template", "extract", "layout", "match", "pieces")

    def __init__(self, pieces: Sequence[bytes], image: bytes) -> None:
        self.layout = layout = leaf_layout(image)
        self.match = re.compile(layout.pattern() + b"()").fullmatch
        self.extract = ValueExtractor(layout)
        self.pieces = pieces
        self._template = b"%b".join([piece.replace(b"%", b"%%") for piece in pieces] + [b""])
        self._sets = layout.sets()
        self._frame: LineTemplate | None = None
        self._framed: bytes | None = None
        self._amended: tuple[LineTemplate, Sequence[str], tuple[bytes, ValueSelector] | None] | None = None

    def fill(self, values: tuple[bytes, ...]) -> bytes:
        for i, sort in self._sets:
            (members,) = sort([values[i]])
            if members != values[i]:
                values = (*values[:i], members, *values[i + 1 :])
        return self._template % values

    def fill_all(self, rows: Sequence[tuple[bytes, ...]]) -> Sequence[bytes]:
        return list(map(self._template.__mod__, rows))

    def framed(self, frame: LineTemplate) -> bytes | None:
        """The template of a line of ``frame`` around an image of this shape; None if it uses a reserved name."""
        if self._frame is not frame:
            template = None if frame.reserves(b"0".join(self.pieces)) else self._template.removesuffix(b"}%b")[1:]
            self._frame, self._framed = frame, None if template is None else frame.around(template + b"%b")
        return self._framed

    def amended(self, frame: LineTemplate, names: Sequence[str]) -> tuple[bytes, ValueSelector] | None:
        """The same without the fields called ``names``, with one more placeholder at the end for their replacement."""
        if self._amended is None or self._amended[0] is not frame or self._amended[1] != names:
            fields, select = without(self.pieces, names)
            template = frame.around(fields + b"%b%b" + (b",%b" if fields else b"%b"))
            reserved = frame.reserves_any(names) or frame.reserves(b"0".join(self.pieces))
            self._amended = frame, names, None if reserved else (template, select)
        return self._amended[2]


class JsonTemplates:
    """Plain JSON of images (or of raw attributes), by templates; ``exact`` defines the result.

    Raises what ``exact`` raises: ValueError or TypeError. Memory is bounded whatever comes in. Use one per table or
    column, because the shape of the previous image is tried first. A ``Raw`` counts as JSON that msgspec validated.
    """

    def __init__(self, exact: Exact) -> None:
        self._exact = exact
        self._templates: dict[tuple[bytes, ...], JsonTemplate] = {}
        self._seen_once: set[int] = set()  # hashes of shapes
        self._fast: FastTemplate | None = None
        self._in_a_row = 0  # images that matched ``_fast``
        self._unknown = 0  # images since the last one of a known shape

    def __call__(self, image: Image) -> bytes:
        whole = bytes(image)
        if not has_plain_escapes(whole) or not (type(image) is msgspec.Raw or _is_json(whole)):
            return self._exact(image)
        try:
            if self._fast is not None and (match := self._fast.match(whole)) is not None:
                self._in_a_row += 1
                result: bytes | None = self._fast.fill(match.groups())
            else:
                self._in_a_row = 0
                result = self._by_shape(whole)
            if result is not None and (result.isascii() or result.decode()):
                return result
        except ValueError:  # invalid UTF-8, which msgspec does not check; or escapes in a set
            pass
        return self._exact(image)

    def all(self, images: Sequence[Image]) -> Iterator[bytes]:
        """The same for many images, in bulk where possible."""
        for start in range(0, len(images), BULK_SIZE):
            some = images[start : start + BULK_SIZE]
            yield from self.bulk(some) or map(self, some)

    def bulk(self, images: Sequence[Image]) -> Sequence[bytes] | None:
        """The same for up to ``BULK_SIZE`` images, in a third less time; None if they must be converted one by one."""
        rows = self._rows(images)
        return None if rows is None or self._fast is None else self._fast.fill_all(rows)

    def framed(self, frame: LineTemplate, leading: LeadingValues, images: Sequence[Image]) -> Sequence[bytes] | None:
        """Up to ``BULK_SIZE`` items as lines of ``frame``; None if they must be converted one by one."""
        template = None if self._fast is None else self._fast.framed(frame)
        rows = None if template is None else self._rows(images)
        return None if template is None or rows is None else list(map(template.__mod__, map(add, leading, rows)))

    def amended(
        self,
        frame: LineTemplate,
        leading: LeadingValues,
        images: Sequence[Image],
        names: Sequence[str],
        fields: Sequence[bytes],
    ) -> Sequence[bytes] | None:
        """The same with ``fields`` in place of the fields called ``names``."""
        amended = None if self._fast is None else self._fast.amended(frame, names)
        rows = None if amended is None else self._rows(images)
        if amended is None or rows is None:
            return None
        template, select = amended
        return list(map(template.__mod__, map(add, map(add, leading, map(select, rows)), zip(fields, strict=True))))

    def _rows(self, images: Sequence[Image]) -> Sequence[tuple[bytes, ...]] | None:
        """The values of images that all have the shape of those before; None if some do not, or that is uncertain."""
        if self._fast is None or self._in_a_row < BULK_SIZE:
            return None
        rows = self._fast.extract(images)
        if rows is None:
            self._in_a_row = 0
        return rows

    def _by_shape(self, image: bytes) -> bytes | None:
        """None for an image whose shape has no template (yet)."""
        if self._unknown >= UNKNOWN_LIMIT and self._unknown % SAMPLE_EVERY:
            self._unknown += 1
            return None
        parts = LEAF.split(image)
        template = self._template(tuple(parts[::2]))
        if template is None:
            self._unknown += 1
            return None
        self._unknown = 0
        template.images += 1
        if template.images == FAST_AFTER and len(template.pieces) <= MAX_FAST_LEAVES:
            template.fast = FastTemplate(template.pieces, image)
        self._fast = template.fast or self._fast
        return template.fill(parts)

    def _template(self, gaps: tuple[bytes, ...]) -> JsonTemplate | None:
        """Made when a shape is seen for the second time: for one that never returns it would not pay off."""
        template = self._templates.get(gaps)
        if template is not None or len(gaps) == 1 or sum(map(len, gaps)) > MAX_SHAPE_BYTES:
            return template
        if hash(gaps) not in self._seen_once:
            self._seen_once = self._seen_once if len(self._seen_once) < MAX_TEMPLATES * 16 else set()
            self._seen_once.add(hash(gaps))
            return None
        pieces = _pieces(gaps, self._exact)
        if pieces is None:
            return None
        self._templates = self._templates if len(self._templates) < MAX_TEMPLATES else {}
        template = self._templates[gaps] = JsonTemplate(pieces)
        return template


def fast_template(image: bytes, exact: Exact) -> FastTemplate | None:
    """The template for images of this one's shape, made at once; None if the shape can have none."""
    gaps = tuple(LEAF.split(image)[::2])
    if not 1 < len(gaps) <= MAX_FAST_LEAVES or sum(map(len, gaps)) > MAX_SHAPE_BYTES:
        return None
    pieces = _pieces(gaps, exact)
    return None if pieces is None else FastTemplate(pieces, image)


def _pieces(gaps: tuple[bytes, ...], exact: Exact) -> Sequence[bytes] | None:
    """The plain JSON between the leaves; None where it depends on more than the shape.

    The markers in place of the leaves are sets, because nothing nests deeper. Each is different, because a name that
    occurs twice changes their order. Nothing else in the output can look like one: all other text is copied from the
    shape, which does not contain the mark. A marker that survives with its kind shows that the image is not
    DynamoDB's.
    """
    shape = b"".join(gaps)
    mark = b"0"
    while mark in shape:
        mark += b"0"
    markers = [b'["%b-%d"]' % (mark, i) for i in range(len(gaps) - 1)]
    try:
        rest = exact(gaps[0] + b"".join(b'{"SS":%b}%b' % pair for pair in zip(markers, gaps[1:], strict=True)))
    except (ValueError, TypeError):
        return None
    pieces = []
    for marker in markers:
        piece, found, rest = rest.partition(marker)
        if not found or piece.endswith(b'{"SS":'):
            return None
        pieces.append(piece)
    return [*pieces, rest]


def _is_json(image: bytes) -> bool:
    try:
        _json.decode(image)
    except DECODE_ERRORS:
        return False
    return True
