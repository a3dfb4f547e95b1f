"""Typed JSON to plain JSON without decoding it: items of one table have few forms, and in a form only values differ.

An image is split at its leaves, the attributes that hold one scalar or one set. What lies between them (names, maps,
lists, nulls) is its form. The form's plain JSON is worked out once, by the exact way, with something else in the
leaves' places; from then on the values are put between its pieces. The result is what the exact way makes, byte for
byte; whatever is not surely so takes that way: odd escapes, numbers in a spelling that JSON does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from operator import add

import msgspec

from replicator.items.attributes import DECODE_ERRORS
from replicator.items.extraction import LEAF, SETS, SORTED, TOGETHER, Image, Values, is_plain, leaves_of
from replicator.items.line_template import Given, Kept, LineTemplate, without

MOST_FORMS = 256
LONGEST = 4096  # bytes of a form without its values
HOT = 256  # images of a form after which an expression of its own pays
MOST_LEAVES = 100  # in such an expression
PATIENCE = 64  # images of unknown form in a row after which only one in ``SELDOM`` is looked at
SELDOM = 16

_json = msgspec.json.Decoder(msgspec.Raw)  # reads valid JSON, and makes nothing of it

Exact = Callable[[Image], bytes]


class JsonTemplate:
    """What lies between the leaves in plain JSON, and how many images had it."""

    __slots__ = ("images", "pieces", "quick")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.images = 0
        self.quick: FastTemplate | None = None

    def filled(self, parts: list[bytes]) -> bytes:
        """The image, split into ``parts`` at its leaves, with these pieces between them."""
        parts[1::2] = [SORTED[v[:2]]([v[4:]])[0] if v[0] in SETS else v for v in parts[1::2]]
        parts[::2] = self.pieces
        return b"".join(parts)


class FastTemplate:
    """One expression for all images of a form whose leaves are of the same kinds."""

    __slots__ = ("_amended", "_frame", "_framed", "_sets", "_template", "leaves", "match", "pieces", "values")

    def __init__(self, pieces: Sequence[bytes], image: bytes) -> None:
        self.leaves = leaves = leaves_of(image)
        self.match = re.compile(leaves.expression() + b"()").fullmatch
        self.values = Values(leaves)
        self.pieces = pieces
        self._template = b"%b".join([piece.replace(b"%", b"%%") for piece in pieces] + [b""])
        self._sets = leaves.sets()
        self._frame: LineTemplate | None = None
        self._framed: bytes | None = None
        self._amended: tuple[LineTemplate, Sequence[str], tuple[bytes, Kept] | None] | None = None

    def filled(self, values: tuple[bytes, ...]) -> bytes:
        for i, in_order in self._sets:
            (found,) = in_order([values[i]])
            if found != values[i]:
                values = (*values[:i], found, *values[i + 1 :])
        return self._template % values

    def all_filled(self, rows: Sequence[tuple[bytes, ...]]) -> Sequence[bytes]:
        return list(map(self._template.__mod__, rows))

    def within(self, frame: LineTemplate) -> bytes | None:
        """The template of a line of ``frame`` with an image of this form in it; None where a name in it is taken."""
        if self._frame is not frame:
            template = None if frame.takes(b"0".join(self.pieces)) else self._template.removesuffix(b"}%b")[1:]
            self._frame, self._framed = frame, None if template is None else frame.around(template + b"%b")
        return self._framed

    def amended(self, frame: LineTemplate, names: Sequence[str]) -> tuple[bytes, Kept] | None:
        """The same without the fields of these names, and with a place for what is there instead, behind the others."""
        if self._amended is None or self._amended[0] is not frame or self._amended[1] != names:
            fields, kept = without(self.pieces, names)
            template = frame.around(fields + b"%b%b" + (b",%b" if fields else b"%b"))
            taken = frame.takes_any(names) or frame.takes(b"0".join(self.pieces))
            self._amended = frame, names, None if taken else (template, kept)
        return self._amended[2]


class JsonTemplates:
    """Plain JSON of images (or of raw attributes) that are alike; ``exact`` says what it is.

    Raises what ``exact`` raises: ValueError or TypeError. Bounded in memory whatever comes. One for each table or
    column, because the form of the last image is tried first. A ``Raw`` is what msgspec has read already.
    """

    def __init__(self, exact: Exact) -> None:
        self._exact = exact
        self._known: dict[tuple[bytes, ...], JsonTemplate] = {}
        self._once: set[int] = set()  # forms that were met once
        self._quick: FastTemplate | None = None
        self._alike = 0  # images one after the other that were of that form
        self._strangers = 0  # since the last image of a known form

    def __call__(self, image: Image) -> bytes:
        whole = bytes(image)
        if not is_plain(whole) or not (type(image) is msgspec.Raw or _is_json(whole)):
            return self._exact(image)
        try:
            if self._quick is not None and (match := self._quick.match(whole)) is not None:
                self._alike += 1
                found: bytes | None = self._quick.filled(match.groups())
            else:
                self._alike = 0
                found = self._looked_up(whole)
            if found is not None and (found.isascii() or found.decode()):
                return found
        except ValueError:  # no UTF-8, which msgspec does not look for; or escapes in a set
            pass
        return self._exact(image)

    def all(self, images: Sequence[Image]) -> Iterator[bytes]:
        """The same of many, together as far as that goes."""
        for start in range(0, len(images), TOGETHER):
            some = images[start : start + TOGETHER]
            yield from self.together(some) or map(self, some)

    def together(self, images: Sequence[Image]) -> Sequence[bytes] | None:
        """The same of up to ``TOGETHER`` images, in a third less time; None if they have to be looked at one by one."""
        rows = self._rows(images)
        return None if rows is None or self._quick is None else self._quick.all_filled(rows)

    def framed(self, frame: LineTemplate, given: Given, images: Sequence[Image]) -> Sequence[bytes] | None:
        """Up to ``TOGETHER`` images of items as lines of ``frame``; None if they have to be looked at one by one."""
        template = None if self._quick is None else self._quick.within(frame)
        rows = None if template is None else self._rows(images)
        return None if template is None or rows is None else list(map(template.__mod__, map(add, given, rows)))

    def amended(
        self, frame: LineTemplate, given: Given, images: Sequence[Image], names: Sequence[str], fields: Sequence[bytes]
    ) -> Sequence[bytes] | None:
        """The same with ``fields`` in place of those of these ``names``."""
        made = None if self._quick is None else self._quick.amended(frame, names)
        rows = None if made is None else self._rows(images)
        if made is None or rows is None:
            return None
        template, kept = made
        return list(map(template.__mod__, map(add, map(add, given, map(kept, rows)), zip(fields, strict=True))))

    def _rows(self, images: Sequence[Image]) -> Sequence[tuple[bytes, ...]] | None:
        """The values of images that are all of the form of those before; None if they are not, or not surely."""
        if self._quick is None or self._alike < TOGETHER:
            return None
        found = self._quick.values(images)
        if found is None:
            self._alike = 0
        return found

    def _looked_up(self, image: bytes) -> bytes | None:
        """None for an image of a form that is not known (yet)."""
        if self._strangers >= PATIENCE and self._strangers % SELDOM:
            self._strangers += 1
            return None
        parts = LEAF.split(image)
        form = self._form(tuple(parts[::2]))
        if form is None:
            self._strangers += 1
            return None
        self._strangers = 0
        form.images += 1
        if form.images == HOT and len(form.pieces) <= MOST_LEAVES:
            form.quick = FastTemplate(form.pieces, image)
        self._quick = form.quick or self._quick
        return form.filled(parts)

    def _form(self, gaps: tuple[bytes, ...]) -> JsonTemplate | None:
        """Learnt when it is met for the second time: what is met once would cost more than it brings."""
        form = self._known.get(gaps)
        if form is not None or len(gaps) == 1 or sum(map(len, gaps)) > LONGEST:
            return form
        if hash(gaps) not in self._once:
            self._once = self._once if len(self._once) < MOST_FORMS * 16 else set()
            self._once.add(hash(gaps))
            return None
        pieces = _pieces(gaps, self._exact)
        if pieces is None:
            return None
        self._known = self._known if len(self._known) < MOST_FORMS else {}
        form = self._known[gaps] = JsonTemplate(pieces)
        return form


def learned(image: bytes, exact: Exact) -> FastTemplate | None:
    """The expression for images that are of this one's form; None where it has none."""
    gaps = tuple(LEAF.split(image)[::2])
    if not 1 < len(gaps) <= MOST_LEAVES or sum(map(len, gaps)) > LONGEST:
        return None
    pieces = _pieces(gaps, exact)
    return None if pieces is None else FastTemplate(pieces, image)


def _pieces(gaps: tuple[bytes, ...], exact: Exact) -> Sequence[bytes] | None:
    """What lies between the leaves in plain JSON; None where that depends on more than the form.

    What stands in for the leaves are sets, because nothing nests deeper, and each another one, because a name that is
    there twice changes their order. Nothing else can come to look like them: what is in the form is written as it is
    read. Where one survives as it was, the image is not DynamoDB's.
    """
    form = b"".join(gaps)
    mark = b"0"
    while mark in form:
        mark += b"0"
    stand_ins = [b'["%b-%d"]' % (mark, i) for i in range(len(gaps) - 1)]
    try:
        rest = exact(gaps[0] + b"".join(b'{"SS":%b}%b' % pair for pair in zip(stand_ins, gaps[1:], strict=True)))
    except (ValueError, TypeError):
        return None
    pieces = []
    for stand_in in stand_ins:
        piece, found, rest = rest.partition(stand_in)
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
