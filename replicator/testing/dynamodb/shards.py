"""A shard: its encoded records in order, and how much of its head is trimmed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

PAGE_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class Shard:
    """A shard of a stream. Numbers up to ``trimmed`` are trimmed; ``end`` is None while it is open."""

    id: str
    parent: str | None
    hashes: range
    start: int
    last: int
    trimmed: int
    opened: float = 0.0
    end: int | None = None
    closed: float | None = None
    sequences: list[int] = field(default_factory=list)
    created: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)  # bytes from the shard's first record through each one
    trimmed_bytes: int = 0

    @property
    def open(self) -> bool:
        return self.end is None

    def append(self, sequence: int, created: int, body: bytes, size: int) -> None:
        self.totals.append((self.totals[-1] if self.totals else self.trimmed_bytes) + size)
        self.sequences.append(sequence)
        self.created.append(created)
        self.bodies.append(body)
        self.last = sequence

    def page(self, after: int, limit: int) -> tuple[list[bytes], int]:
        """The records that follow ``after``, 1 MB and ``limit`` of them at most, and the number reached."""
        first = bisect_right(self.sequences, after)
        passed = self.totals[first - 1] if first else self.trimmed_bytes
        fitting = max(bisect_right(self.totals, passed + PAGE_BYTES), first + 1)
        found = self.bodies[first : min(fitting, first + limit)]
        return found, self.sequences[first + len(found) - 1] if found else after

    def exhausted(self, after: int) -> bool:
        """Whether the shard is closed and nothing follows ``after``."""
        return not self.open and bisect_right(self.sequences, after) == len(self.sequences)

    def has(self, sequence: int) -> bool:
        at = bisect_left(self.sequences, sequence)
        return at < len(self.sequences) and self.sequences[at] == sequence

    def before(self, timestamp: float) -> int:
        """The number after which the records created at or after ``timestamp`` follow."""
        at = bisect_left(self.created, timestamp)
        if at == 0:
            return self.trimmed
        return self.sequences[at - 1] if at < len(self.sequences) else self.last

    def trim(self, count: int) -> None:
        """Trim the ``count`` oldest records."""
        count = min(count, len(self.sequences))
        if count <= 0:
            return
        self.trimmed, self.trimmed_bytes = self.sequences[count - 1], self.totals[count - 1]
        for column in (self.sequences, self.created, self.bodies, self.totals):
            del column[:count]

    def trim_older(self, than: float) -> None:
        self.trim(bisect_left(self.created, than))
