"""Sequence numbers: AWS promises digits, 21 to 40 of them, rising inside a shard, and nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Numbering:
    """What a stream's sequence numbers look like.

    ``digits`` is their length, leading ``zeros`` included. ``first``: where the stream begins to count, e.g. just below
    a power of ten, so that the length changes while it runs. ``across_shards``: numbers rise along the whole stream;
    False gives each shard a beginning of its own, so a child may count lower than its parent.
    """

    digits: int = 21
    zeros: int = 0
    first: int | None = None
    across_shards: bool = True

    def text(self, number: int) -> str:
        return f"{number:0{self.digits}d}"

    def beginning(self, random: random.Random) -> int:
        """A number to count from."""
        if self.first is not None:
            return self.first
        lowest = 10 ** (self.digits - self.zeros - 1)
        return random.randrange(lowest, 5 * lowest) if not self.across_shards else lowest + random.getrandbits(40)


class Sequences:
    """Gives out the numbers of one stream, with gaps between them."""

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
        """The next number in a shard whose last one is given."""
        step = self._random.getrandbits(10) + 1
        if not self._numbering.across_shards:
            return last + step
        self._highest += step
        return self._highest
