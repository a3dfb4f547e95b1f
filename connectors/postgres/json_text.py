"""Documents as JSON text for jsonb, which can hold no NUL characters."""

from __future__ import annotations

import re

from connectors.postgres.options import Nul
from connectors.postgres.texts import NUL_REFUSED, REPLACEMENT
from replicator import json_text
from replicator.attributes import Typed, Typeds
from replicator.images import Attribute, plain, plain_image
from replicator.json_text import Unfit

_NUL = "\\u0000"
_ESCAPE = re.compile(r"\\(u0000|.)")


class JsonText:
    """JSON texts under one policy for NUL characters."""

    def __init__(self, nul: Nul) -> None:
        self._nul = nul

    def of_item(self, typeds: Typeds) -> str:
        """A whole item."""
        return self.of_typed({"M": typeds})

    def of_image(self, image: bytes) -> str:
        """A whole item that is not decoded yet; Malformed if it is none."""
        found = json_text.of_plain(plain_image(image))
        return found if _NUL not in found else self._without_nul(found)

    def of_attribute(self, attribute: Attribute) -> str | None:
        """One attribute; None for null."""
        if attribute.NULL is not None:
            return None
        found = json_text.of_plain(plain(attribute))
        return found if _NUL not in found else self._without_nul(found)

    def of_typed(self, attribute: Typed) -> str:
        """One attribute."""
        found = json_text.of_typed(attribute)
        return found if _NUL not in found else self._without_nul(found)

    def of_python(self, value: object) -> str:
        """What a hook returned."""
        found = json_text.of_python(value)
        return found if _NUL not in found else self._without_nul(found)

    def _without_nul(self, text: str) -> str:
        replaced = _ESCAPE.sub(lambda e: REPLACEMENT if e[1] == "u0000" else e[0], text)
        if replaced != text and self._nul == "reject":
            raise Unfit(NUL_REFUSED)
        return replaced
