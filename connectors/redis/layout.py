"""Keys: where a table's documents are, and their guards. Pure.

A document's key is the table's prefix and the document's id, so that readers can make it: ``orders:42``. Its guard
holds its version, and is the tombstone once the document is gone: ``replicator:{orders:42}``. In a cluster the text
between braces decides the slot of a key, so both are in the same slot: one function can change both at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from connectors.redis.options import RESERVED, prefix_of
from replicator.batch import DocumentId
from replicator.target.contract import Table

TABLES = f"{RESERVED}tables".encode()
"""The set of all tables' prefixes, in each database."""

_GUARD = f"{RESERVED}{{".encode()
_ESCAPED = {mark: f"%{ord(mark):02X}" for mark in "%{}"}
_INNER = str.maketrans({**_ESCAPED, ":": "%3A"})
_LAST = str.maketrans(_ESCAPED)
_GLOB = re.compile(rb"[\\*?\[\]]")


@dataclass(frozen=True, slots=True)
class Layout:
    """A table. ``parts``: of its documents' ids. ``expires``: the field with the time of expiry; empty for none."""

    name: str
    prefix: bytes
    parts: int
    hashes: bool = False
    expires: str = ""

    @property
    def note(self) -> bytes:
        """The key of what is noted about the table: its pipeline, its epoch, an id."""
        return note_of(self.prefix)

    def key(self, id: DocumentId) -> bytes:
        """A document's key. UnicodeEncodeError for half of a surrogate pair."""
        inner = [part.translate(_INNER) for part in id[:-1]]
        return self.prefix + ":".join([*inner, id[-1].translate(_LAST)]).encode()

    def id(self, guard: bytes) -> DocumentId | None:
        """The id of the document with this guard; None if it is not of this table."""
        text = document_of(guard)[len(self.prefix) :].decode(errors="replace")
        parts = tuple(map(unquote, text.split(":", self.parts - 1)))
        return parts if len(parts) == self.parts and self._is_guard(parts, guard) else None

    def _is_guard(self, id: DocumentId, guard: bytes) -> bool:
        try:
            return guard_of(self.key(id)) == guard
        except UnicodeEncodeError:
            return False

    def guards(self, within: DocumentId = ()) -> bytes:
        """The pattern of its guards' keys: of all whose ids begin with ``within``."""
        if len(within) == self.parts:
            return _literal(guard_of(self.key(within)))
        inner = "".join(f"{part.translate(_INNER)}:" for part in within).encode()
        return _literal(_GUARD + self.prefix + inner) + b"*}"

    @property
    def documents(self) -> bytes:
        """The pattern of its documents' keys."""
        return _literal(self.prefix) + b"*"


def note_of(prefix: bytes) -> bytes:
    return f"{RESERVED}table:".encode() + prefix


def guard_of(key: bytes) -> bytes:
    return b"%b%b}" % (_GUARD, key)


def document_of(guard: bytes) -> bytes:
    return guard[len(_GUARD) : -1]


def _literal(text: bytes) -> bytes:
    """A pattern that matches exactly this text."""
    return _GLOB.sub(rb"\\\g<0>", text)


def layout(table: Table) -> Layout:
    options = table.options
    prefix = prefix_of(table.name, options)
    hashes = options.get("store", "json") == "hash"
    return Layout(table.name, prefix.encode(), len(table.keys.attributes), hashes, options.get("expires") or "")


def layouts(tables: Sequence[Table]) -> Mapping[str, Layout]:
    return {table.name: layout(table) for table in tables}


def overlapping(wanted: Sequence[bytes], others: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Pairs of prefixes of which the second begins with the first: their keys could be the same."""
    pairs = {(min(one, other), max(one, other)) for one in wanted for other in others if one != other}
    return sorted((first, second) for first, second in pairs if second.startswith(first))
