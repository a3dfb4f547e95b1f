"""A document as the item it is stored as: an image's own bytes where there is no hook, else what the hook returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from connectors.dynamodb.layout import Layout
from connectors.dynamodb.python_values import fields
from replicator.batch import Upsert
from replicator.items.attributes import canonical_number, decoded
from replicator.items.item import Amended, Item
from replicator.items.to_json import Unfit

_raws = msgspec.json.Decoder(dict[str, msgspec.Raw])
_typed = msgspec.json.Decoder(dict[str, Any])

Raws = dict[str, Any]
"""An item's attributes by name, each as JSON text or as what becomes it."""


class Stored:
    """Makes items for one table, without the version: that is added to the request."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._quoted = [orjson.dumps(name) for name in layout.ours]

    def item(self, write: Upsert) -> bytes:
        """The item's JSON. Unfit says in words why it cannot be stored."""
        body = write.body
        if type(body) is Item and not self._layout.own_ids:
            image = bytes(body.image)
            if b"\\u" not in image and not any(name in image for name in self._quoted):
                return image
            # perhaps only a value looks like one of our names; or one is spelt with an escape, as JSON allows
            self._check_names(_attributes(image))
            return image
        found = self._raws(body)
        self._check_names(found)
        return orjson.dumps(self._with_key(found, write), default=_as_text)

    def _raws(self, body: Mapping[str, object]) -> Raws:
        if type(body) is Item:
            return _attributes(bytes(body.image))
        if type(body) is Amended:
            return _attributes(bytes(body.item.image)) | fields(body.changes)
        return fields(body)

    def _check_names(self, found: Raws) -> None:
        for name in self._layout.ours:
            if name in found:
                raise Unfit(
                    f"has an attribute {name} of its own, which is where replicator keeps what it must remember; "
                    "give it another name (target.version_attribute, target.deleted_attribute)"
                )

    def _with_key(self, found: Raws, write: Upsert) -> Raws:
        """The key is the one that the document is filed under; where a hook says another one, it is a mistake."""
        for attribute, text in zip(self._layout.keys.attributes, write.id, strict=True):
            given = found.get(attribute.name)
            if given is not None and not _is(given, attribute.kind, text):
                raise Unfit(
                    f"has a key attribute {attribute.name} that is not the item's own {attribute.kind} value; "
                    "leave it as it is, or let the hook give documents ids of their own (@documents)"
                )
            found[attribute.name] = {attribute.kind: text}
        return found


def _attributes(image: bytes) -> Raws:
    return decoded(_raws, image)


def _is(given: Any, kind: str, text: str) -> bool:
    attribute = _typed.decode(given) if isinstance(given, msgspec.Raw) else given
    if kind not in attribute:
        return False
    return bool((canonical_number(attribute["N"]) if kind == "N" else attribute[kind]) == text)


def _as_text(value: object) -> orjson.Fragment:
    assert isinstance(value, msgspec.Raw)
    return orjson.Fragment(bytes(value))
