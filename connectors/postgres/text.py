"""Documents as JSON text for jsonb, which can hold no NUL characters."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from connectors.postgres.options import Nul
from connectors.postgres.texts import NUL_REFUSED, REPLACEMENT
from replicator.items import to_json
from replicator.items.attributes import Malformed, Typed, Typeds, plain
from replicator.items.extraction import Image
from replicator.items.json_templates import JsonTemplates
from replicator.items.to_json import Unfit

_attribute = msgspec.json.Decoder(dict[str, Any])
_NUL = "\\u0000"
_NULL = b"null"
_ESCAPE = re.compile(r"\\(u0000|.)")


class JsonText:
    """JSON texts under one policy for NUL characters."""

    def __init__(self, nul: Nul) -> None:
        self._nul = nul
        self._images = JsonTemplates(to_json.plain_image)
        self._attributes = JsonTemplates(_plain_attribute)

    def of_images(self, images: Sequence[Image]) -> list[str]:
        """Whole items that are not decoded. ValueError, TypeError: one is not DynamoDB's."""
        return [self._kept(found.decode()) for found in self._images.all(images)]

    def of_raws(self, attributes: Sequence[msgspec.Raw]) -> list[str | None]:
        """Attributes that are not decoded; None for null. ValueError, TypeError: one is not DynamoDB's."""
        return [self._kept(a.decode()) if a != _NULL else None for a in self._attributes.all(attributes)]

    def of_item(self, typeds: Typeds) -> str:
        """A whole item."""
        return self.of_typed({"M": typeds})

    def of_typed(self, attribute: Typed) -> str:
        """One attribute."""
        return self._kept(to_json.of_typed(attribute))

    def of_python(self, value: object) -> str:
        """What a hook returned."""
        return self._kept(to_json.of_python(value))

    def _kept(self, text: str) -> str:
        return text if _NUL not in text else self._without_nul(text)

    def _without_nul(self, text: str) -> str:
        replaced = _ESCAPE.sub(lambda e: REPLACEMENT if e[1] == "u0000" else e[0], text)
        if replaced != text and self._nul == "reject":
            raise Unfit(NUL_REFUSED)
        return replaced


def _plain_attribute(raw: Image) -> bytes:
    found = _attribute.decode(raw)
    text = orjson.dumps(plain(found))
    if text == _NULL and "NULL" not in found:
        raise Malformed("a null that is not of that type")
    return text
