"""Documents as JSON text for jsonb, which can hold no NUL characters."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from connectors.postgres.options import Nul
from connectors.postgres.texts import NUL_REFUSED, REPLACEMENT
from replicator import json_text
from replicator.attributes import Typed, Typeds
from replicator.json_text import Unfit

_attribute = msgspec.json.Decoder(dict[str, Any])
_NUL = "\\u0000"
_ESCAPE = re.compile(r"\\(u0000|.)")


class JsonText:
    """JSON texts under one policy for NUL characters."""

    def __init__(self, nul: Nul) -> None:
        self._nul = nul

    def of_item(self, typeds: Typeds) -> str:
        """A whole item."""
        return self.of_typed({"M": typeds})

    def of_raw(self, attribute: msgspec.Raw) -> str | None:
        """One attribute that is not decoded yet; None for null."""
        found = _attribute.decode(attribute)
        return None if "NULL" in found else self.of_typed(found)

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
