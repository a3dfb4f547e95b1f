"""The ids of the documents that a pass has compared with their items, as hashes in bounded memory.

The walk over the target need not look those up in the source again. What does not fit is forgotten, and only costs a
read of the source. Another id with the same hash would hide a document: with 64 bits, one in a million million.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from replicator.batch import DocumentId

FEWEST = 2**12  # slots
MOST = 2**23  # slots of 8 bytes: 64 MB, for nearly all of four million ids, and most of eight million
_BITS = 2**64 - 1


def _empty(count: int) -> array[int]:
    return array("Q", bytes(8)) * count


@dataclass(slots=True)
class ComparedIds:
    """A hash table of at most ``most`` slots, which doubles while it is more than half full.

    A hash is in the slot of its lower half, of its upper half, or beside them; it is forgotten if none is free. 0 is
    empty.
    """

    most: int = MOST
    count: int = 0
    _held: array[int] = field(default_factory=lambda: _empty(FEWEST))

    @property
    def slots(self) -> int:
        return len(self._held)

    def add(self, table: str, ids: Sequence[DocumentId]) -> None:
        while self.count + len(ids) > self.slots // 2 and self.slots < self.most:
            held, self._held, self.count = self._held, _empty(self.slots * 2), 0
            self._store(filter(None, held))
        self._store(_hashes(table, ids))

    def others(self, table: str, ids: Sequence[DocumentId]) -> list[DocumentId]:
        """Those that were not compared, or are forgotten."""
        held, mask = self._held, self.slots - 1
        return [
            id
            for id, number in zip(ids, _hashes(table, ids), strict=True)
            if held[at := number & mask] != number
            and held[other := number >> 32 & mask] != number
            and held[at ^ 1] != number
            and held[other ^ 1] != number
        ]

    def _store(self, numbers: Iterable[int]) -> None:
        held, mask = self._held, self.slots - 1
        for number in numbers:
            at, other = number & mask, number >> 32 & mask
            for slot in (at, other, at ^ 1, other ^ 1):
                if held[slot] == number:
                    break
                if not held[slot]:
                    held[slot] = number
                    self.count += 1
                    break


def _hashes(table: str, ids: Sequence[DocumentId]) -> Iterable[int]:
    """Python's own, which differ in each process unless it is told otherwise, so no keys can be made that collide."""
    return (number & _BITS or 1 for number in map(hash, zip(repeat(table), ids)))
