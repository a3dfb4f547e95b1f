"""What a hook asks items for, learnt from what it asked: the next image is decoded for that, and no further.

A hook looks at few attributes of many. As fields of a struct they are found in half the time that it takes to take the
whole image apart, and their values come with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar

import msgspec

from replicator.items.attributes import DECODE_ERRORS, TO_PYTHON, decoded, value

MOST = 32  # names; a hook that asks for more does not look at few
ANY = ""  # attributes of several kinds, or of one that is taken apart when it is asked for
_TYPES: Mapping[str, type] = {"S": str, "N": str, "BOOL": bool}

_attribute = msgspec.json.Decoder(dict[str, Any])

Convert = Callable[[Any], Any]


class Row(msgspec.Struct, gc=False):
    """The attributes of an image that are asked for, None for those that it has not.

    ``fields``: where each is; ``ways``: how to its value, AttributeError where it is missing.
    """

    fields: ClassVar[Mapping[str, str]] = {}
    ways: ClassVar[Mapping[str, Convert]] = {}


NOTHING = Row()


class AccessProfile:
    """The names that one hook asks for, with the kind of attribute that each was so far.

    ``row`` is of ``image``, the last that was looked at. It is kept here, not with the item: what the next image is
    decoded to takes its place in memory, while that is at hand.
    """

    def __init__(self) -> None:
        self.image: bytes | None = None
        self.row = NOTHING
        self._kinds: dict[str, str | None] = {}  # None: no item had it yet
        self._unfit: set[str] = set()  # names that msgspec has no field of
        self._decoder = msgspec.json.Decoder(Row)

    def look(self, image: bytes) -> Row:
        """``NOTHING`` for an image in which some attribute is of another kind than it was so far."""
        self.image = image
        try:
            self.row = self._decoder.decode(image) if self._kinds else NOTHING
        except DECODE_ERRORS:
            self.row = NOTHING
        return self.row

    def learn(self, name: str, kind: str | None) -> None:
        """An item was asked for ``name``, and had an attribute of that kind; None: it had none."""
        if name in self._unfit or (name not in self._kinds and len(self._kinds) >= MOST):
            return
        found = _seen(self._kinds.get(name), kind)
        if name in self._kinds and self._kinds[name] == found:
            return
        try:
            self._decoder = msgspec.json.Decoder(_struct({**self._kinds, name: found}))
        except ValueError:
            self._unfit.add(name)
        else:
            self._kinds[name] = found


def _struct(kinds: Mapping[str, str | None]) -> type[Row]:
    places = {name: f"c{i}" for i, name in enumerate(kinds)}
    found: Any = msgspec.defstruct(
        "Row",
        [(place, _ATTRIBUTES.get(kinds[name] or ANY, msgspec.Raw), None) for name, place in places.items()],
        bases=(Row,),
        namespace={"fields": places, "ways": {name: _way(place, kinds[name]) for name, place in places.items()}},
        rename={place: name for name, place in places.items()},
        gc=False,
    )
    return found  # type: ignore[no-any-return]


def _way(place: str, kind: str | None) -> Convert:
    if kind is None or kind not in _TYPES:
        return lambda row: value(decoded(_attribute, _there(getattr(row, place))))
    inner, convert = attrgetter(f"{place}.{kind}"), TO_PYTHON[kind]
    return inner if kind != "N" else lambda row: convert(inner(row))  # the others are of the right type by now


def _there(raw: msgspec.Raw | None) -> msgspec.Raw:
    if raw is None:
        raise AttributeError
    return raw


def _seen(before: str | None, now: str | None) -> str | None:
    if now is None or now == before:
        return before
    return now if before is None and now in _TYPES else ANY


# Of one kind and nothing else: whatever is not exactly that is looked at by somebody else.
_ATTRIBUTES = {
    kind: msgspec.defstruct(kind, [(kind, type)], frozen=True, gc=False, forbid_unknown_fields=True)
    for kind, type in _TYPES.items()
}
