"""Lines of a target's own with a document's fields in each: what surrounds the fields, as one template."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import msgspec
import orjson

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

Given = Sequence[tuple[bytes, ...]]
"""For each document the values in front of its fields."""


@dataclass(frozen=True, slots=True)
class LineTemplate:
    """``before`` the fields of a document, a template with a ``%b`` for each value that is given, and ``after`` them.

    There is at least one field. ``taken``: the name that no field may have, because ``before`` has it already; nor may
    a field's name begin with it and a dot, which search engines take for what is inside it.
    """

    before: bytes
    after: bytes
    taken: str | None = None

    def around(self, fields: bytes) -> bytes:
        """A whole line's template."""
        return self.before + fields + self.after

    def takes(self, document: bytes) -> bool:
        """Whether a field of this JSON object has a name that is taken."""
        return self.taken is not None and self.takes_any(orjson.loads(document))

    def takes_any(self, names: Iterable[object]) -> bool:
        """Whether one of these names is taken."""
        return self.taken is not None and any(is_within(name, self.taken) for name in names)


def is_within(name: object, taken: str) -> bool:
    """Whether a field of this name is ``taken``, or inside it where a dot leads into an object."""
    return isinstance(name, str) and name.startswith(taken) and name[len(taken) : len(taken) + 1] in ("", ".")


Kept = Callable[[Any], Any]
"""From all values of an image to those that are kept, as a tuple; the last of all is empty, and comes twice."""


def fields_of(pieces: Sequence[bytes]) -> Iterator[tuple[str, int, list[bytes]]]:
    """The fields of a form: name, number of the first value in it, and what lies around its values.

    There is a value between two ``pieces``.
    """
    mark = b"0"  # like nothing else in the form
    while any(mark in piece for piece in pieces):
        mark += b"0"
    at = 0
    for name, raw in _fields.decode((b'"%b"' % mark).join(pieces)).items():
        around = bytes(raw).split(b'"%b"' % mark)
        yield name, at, around
        at += len(around) - 1


def template(around: Sequence[bytes]) -> bytes:
    """With a ``%b`` for each value."""
    return b"%b".join([piece.replace(b"%", b"%%") for piece in around])


def without(pieces: Sequence[bytes], names: Collection[str]) -> tuple[bytes, Kept]:
    """The template of a form's fields but these, and the values in it."""
    kept: list[int] = []
    fields: list[bytes] = []
    for name, at, around in fields_of(pieces):
        if name not in names:
            kept += range(at, at + len(around) - 1)
            fields.append(template([orjson.dumps(name) + b":" + around[0], *around[1:]]))
    return b",".join(fields), itemgetter(*kept, -1, -1)
