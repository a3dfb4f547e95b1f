"""An image as hooks see it: a mapping that decodes what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from replicator.items.attributes import TO_PYTHON, WRONG, Typeds, decoded, typed, value
from replicator.items.projection import AccessProfile

_attributes = msgspec.json.Decoder(dict[str, msgspec.Raw])
_attribute = msgspec.json.Decoder(dict[str, Any])


class Item(Mapping[str, Any]):
    """An image as hooks see it: a read-only mapping from attribute names to exact Python values.

    S is str, N is Decimal, B is bytes, BOOL is bool, NULL is None, M is dict, L is list, the sets are frozensets.
    Nothing is decoded before it is asked for. ``item | {"name": value}`` is the item with some values of your own, and
    leaves the others undecoded: the quickest thing a hook can return. ``asked``: what its hook asked other items for.
    """

    __slots__ = ("_asked", "_raws", "image")

    def __init__(self, image: bytes, asked: AccessProfile | None = None) -> None:
        self.image = image  # as DynamoDB sent it
        self._asked = asked
        self._raws: dict[str, msgspec.Raw] | None = None

    @property
    def typed(self) -> Typeds:
        """The attributes in DynamoDB's types, decoded anew each time."""
        return typed(self.image)

    @property
    def _attributes(self) -> dict[str, msgspec.Raw]:
        if self._raws is None:
            self._raws = decoded(_attributes, self.image)
        return self._raws

    def __getitem__(self, name: str) -> Any:
        asked = self._asked
        if asked is None:
            return self._found(name)
        row = asked.row if asked.image is self.image else asked.look(self.image)
        way = row.ways.get(name)
        if way is None:
            return self._found(name)
        try:
            return way(row)
        except AttributeError:
            raise KeyError(name) from None

    def _found(self, name: str) -> Any:
        try:
            raw = (self._raws or self._attributes)[name]
        except KeyError:
            self._learn(name, None)
            raise
        try:  # what is there most, with nothing in between
            ((kind, inner),) = _attribute.decode(raw).items()
            found = TO_PYTHON[kind](inner)
        except (*WRONG, KeyError):
            return value(decoded(_attribute, raw))
        self._learn(name, kind)
        return found

    def _learn(self, name: object, kind: str | None) -> None:
        if self._asked is not None and type(name) is str:
            self._asked.learn(name, kind)

    def __or__(self, changes: Mapping[str, object]) -> Amended:
        return Amended(self, changes) if type(changes) is dict or isinstance(changes, Mapping) else NotImplemented

    def __iter__(self) -> Iterator[str]:
        self._asked = None  # who wants to see all of it asks for nothing in particular
        return iter(self._attributes)

    def __len__(self) -> int:
        return len(self._attributes)

    def __contains__(self, name: object) -> bool:
        if self._asked is not None:
            row = self._asked.row if self._asked.image is self.image else self._asked.look(self.image)
            place = row.fields.get(name)  # type: ignore[call-overload]
            if place is not None:
                return getattr(row, place) is not None
        if name in self._attributes:
            return True
        self._learn(name, None)
        return False

    def __repr__(self) -> str:
        return f"Item({', '.join(self)})"  # names only: values may be private


class Amended(Mapping[str, Any]):
    """An item with some values that a hook put in their place, or added. Read-only, like the item."""

    __slots__ = ("changes", "item")

    def __init__(self, item: Item, changes: Mapping[str, object]) -> None:
        self.item = item
        self.changes = changes

    def __getitem__(self, name: str) -> Any:
        return self.changes[name] if name in self.changes else self.item[name]

    def __or__(self, changes: Mapping[str, object]) -> Amended:
        return Amended(self.item, {**self.changes, **changes}) if isinstance(changes, Mapping) else NotImplemented

    def __iter__(self) -> Iterator[str]:
        yield from self.item
        yield from (name for name in self.changes if name not in self.item)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Amended({', '.join(self)})"
