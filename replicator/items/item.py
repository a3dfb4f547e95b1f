"""The item that a hook receives: a mapping over an image that decodes attributes as they are accessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from replicator.items.attributes import SHAPE_ERRORS, TO_PYTHON, Typeds, decoded, typed, value
from replicator.items.projection import AccessProfile

_attributes = msgspec.json.Decoder(dict[str, msgspec.Raw])
_attribute = msgspec.json.Decoder(dict[str, Any])


class Item(Mapping[str, Any]):
    """A read-only mapping from attribute names to exact Python values.

    S is str, N is Decimal, B is bytes, BOOL is bool, NULL is None, M is dict, L is list, and sets are frozensets.
    Attributes are decoded when accessed; Malformed if one is not a DynamoDB value. ``item | {"name": value}`` is the
    item with some values replaced or added, and leaves all others undecoded: the cheapest thing a hook can return.
    ``profile``: what the hook accessed in earlier items.
    """

    __slots__ = ("_profile", "_raws", "image")

    def __init__(self, image: bytes, profile: AccessProfile | None = None) -> None:
        self.image = image  # as DynamoDB sent it
        self._profile = profile
        self._raws: dict[str, msgspec.Raw] | None = None

    @property
    def typed(self) -> Typeds:
        """The attributes in DynamoDB's types, decoded on each access."""
        return typed(self.image)

    @property
    def _attributes(self) -> dict[str, msgspec.Raw]:
        if self._raws is None:
            self._raws = decoded(_attributes, self.image)
        return self._raws

    def __getitem__(self, name: str) -> Any:
        profile = self._profile
        if profile is None:
            return self._decode(name)
        row = profile.row if profile.image is self.image else profile.decode(self.image)
        getter = row.getters.get(name)
        if getter is None:
            return self._decode(name)
        try:
            return getter(row)
        except AttributeError:
            raise KeyError(name) from None

    def _decode(self, name: str) -> Any:
        try:
            raw = (self._raws or self._attributes)[name]
        except KeyError:
            self._record(name, None)
            raise
        try:  # the usual case, inlined
            ((kind, inner),) = _attribute.decode(raw).items()
            result = TO_PYTHON[kind](inner)
        except (*SHAPE_ERRORS, KeyError):
            return value(decoded(_attribute, raw))
        self._record(name, kind)
        return result

    def _record(self, name: object, kind: str | None) -> None:
        if self._profile is not None and type(name) is str:
            self._profile.record(name, kind)

    def __or__(self, changes: Mapping[str, object]) -> Amended:
        return Amended(self, changes) if type(changes) is dict or isinstance(changes, Mapping) else NotImplemented

    def __iter__(self) -> Iterator[str]:
        self._profile = None  # iterating reads everything, so it says nothing about single attributes
        return iter(self._attributes)

    def __len__(self) -> int:
        return len(self._attributes)

    def __contains__(self, name: object) -> bool:
        if self._profile is not None:
            row = self._profile.row if self._profile.image is self.image else self._profile.decode(self.image)
            field = row.fields.get(name)  # type: ignore[call-overload]
            if field is not None:
                return getattr(row, field) is not None
        if name in self._attributes:
            return True
        self._record(name, None)
        return False

    def __repr__(self) -> str:
        return f"Item({', '.join(self)})"  # names only: values may be private


class Amended(Mapping[str, Any]):
    """An item with some values replaced or added by a hook (``item | changes``). Read-only."""

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
