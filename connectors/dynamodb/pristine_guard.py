"""For tables that keep no version: which scanned items the stream has overtaken meanwhile.

A page of a scan may be written after a change that came later than the page was read. Elsewhere the condition on the
version turns it away; here this run remembers what the stream changed while it scans. A run that ends forgets that, but
with it the pages that it had read: the next run reads them anew, and they are then as new as what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from connectors.dynamodb.encode import Entry
from replicator.batch import Write
from replicator.version import ORDINAL_BITS

_SCANNED = (1 << ORDINAL_BITS) - 1


class Overtaken:
    """The ids of what the stream wrote during a backfill: 16 bytes each, as hashes."""

    def __init__(self) -> None:
        self._live: set[bytes] = set()

    def split(self, entries: Sequence[Entry], *, scanning: bool) -> tuple[list[Entry], list[Entry]]:
        """The entries that are to be written, and those that are stale."""
        if not scanning:
            self._live.clear()
            return list(entries), []
        fresh: list[Entry] = []
        stale: list[Entry] = []
        for entry in entries:
            id = _hashed(entry.write)
            if entry.write.version & _SCANNED:
                self._live.add(id)
                fresh.append(entry)
            else:
                (stale if id in self._live else fresh).append(entry)
        return fresh, stale


def _hashed(write: Write) -> bytes:
    return blake2b(repr((write.table, write.id)).encode(errors="surrogatepass"), digest_size=16).digest()
