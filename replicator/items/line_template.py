"""Templates for a target's own lines around the fields of documents, such as those of a bulk request."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec
import orjson

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

LeadingValues = Sequence[tuple[bytes, ...]]
"""For each document, the values of the placeholders before its fields."""


@dataclass(frozen=True, slots=True)
class LineTemplate:
    """What comes ``before`` the fields of a document, with a ``%b`` for each leading value, and ``after`` them.

    Documents have at least one field. ``reserved``: a name that no field may have, because ``before`` uses it; nor may
    a field's name start with it and a dot, which search engines read as a path into it.
    """

    before: bytes
    after: bytes
    reserved: str | None = None

    def around(self, fields: bytes) -> bytes:
        """The template of a whole line."""
        return self.before + fields + self.after

    def reserves(self, document: bytes) -> bool:
        """Whether a field of this JSON object has a reserved name."""
        return self.reserved is not None and self.reserves_any(orjson.loads(document))

    def reserves_any(self, names: Iterable[object]) -> bool:
        """Whether one of these names is reserved."""
        return self.reserved is not None and any(is_within(name, self.reserved) for name in names)


def is_within(name: object, reserved: str) -> bool:
    """Whether a field name is ``reserved``, or a path into it where dots lead into objects."""
    return isinstance(name, str) and name.startswith(reserved) and name[len(reserved) : len(reserved) + 1] in ("", ".")


ValueSelector = Callable[[Any], Any]
"""From a row of all values to those that a template uses, as a tuple; the row's last, empty value comes twice."""


def fields_of(pieces: Sequence[bytes]) -> Iterator[tuple[str, int, list[bytes]]]:
    """The fields of a shape, from the ``pieces`` between its values.

    For each: its name, the index of its first value, and the pieces around its values.
    """
    mark = b"0"  # unlike anything in the pieces
    while any(mark in piece for piece in pieces):
        mark += b"0"
    first = 0
    for name, raw in _fields.decode((b'"%b"' % mark).join(pieces)).items():
        around = bytes(raw).split(b'"%b"' % mark)
        yield name, first, around
        first += len(around) - 1


def template(around: Sequence[bytes]) -> bytes:
    """The pieces with a ``%b`` for each value between them."""
    return b"%b".join([piece.replace(b"%", b"%%") for piece in around])


def without(pieces: Sequence[bytes], names: Collection[str]) -> tuple[bytes, ValueSelector]:
    """The template of all fields except those called ``names``, and what selects its values."""
    kept: list[int] = []
    fields: list[bytes] = []
    for name, first, around in fields_of(pieces):
        if name not in names:
            kept += range(first, first + len(around) - 1)
            fields.append(template([orjson.dumps(name) + b":" + around[0], *around[1:]]))
    return b",".join(fields), itemgetter(*kept, -1, -1)
