"""Sequence numbers. AWS only guarantees 21 to 40 digits, increasing within a shard."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Numbering:
    """The format of a stream's sequence numbers.

    ``digits``: their length, including leading ``zeros``. ``first``: the first number, e.g. just below a power of ten,
    so that the length changes. ``across_shards``: numbers increase along the whole stream; False gives each shard a
    separate start, so a child's numbers may be lower than its parent's.
    """

    digits: int = 21
    zeros: int = 0
    first: int | None = None
    across_shards: bool = True

    def text(self, number: int) -> str:
        return f"{number:0{self.digits}d}"

    def beginning(self, random: random.Random) -> int:
        """A number to start from."""
        if self.first is not None:
            return self.first
        lowest = 10 ** (self.digits - self.zeros - 1)
        return random.randrange(lowest, 5 * lowest) if not self.across_shards else lowest + random.getrandbits(40)


class Sequences:
    """Generates the numbers of one stream, with gaps between them."""

    def __init__(self, numbering: Numbering, random: random.Random) -> None:
        self._numbering = numbering
        self._random = random
        self._highest = numbering.beginning(random)

    def opening(self) -> int:
        """The StartingSequenceNumber of a new shard."""
        if self._numbering.across_shards:
            return self.after(0)
        return self._numbering.beginning(self._random)

    def after(self, last: int) -> int:
        """The next number in a shard after its last one."""
        step = self._random.getrandbits(10) + 1
        if not self._numbering.across_shards:
            return last + step
        self._highest += step
        return self._highest
