"""Lines of a target's own with a document's fields in each: what surrounds the fields, as one template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import orjson

Given = Sequence[tuple[bytes, ...]]
"""For each document the values in front of its fields."""


@dataclass(frozen=True, slots=True)
class Frame:
    """``before`` the fields of a document, a template with a ``%b`` for each value that is given, and ``after`` them.

    There is at least one field. ``taken``: the name that no field may have, because ``before`` has it already.
    """

    before: bytes
    after: bytes
    taken: str | None = None

    def around(self, fields: bytes) -> bytes:
        """A whole line's template."""
        return self.before + fields + self.after

    def takes(self, document: bytes) -> bool:
        """Whether a field of this JSON object has the name that is taken."""
        return self.taken is not None and self.taken in orjson.loads(document)
