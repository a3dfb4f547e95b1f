"""Versions and positions.

A version is ``epoch << 48 | ordinal``: a signed 64-bit integer that every target can compare. It is derived from the
position alone, never from a clock, so a replay assigns each change the same version as before.
"""

from __future__ import annotations

from dataclasses import dataclass

ORDINAL_BITS = 48
FIRST_EPOCH = 1024  # versions start above microsecond timestamps (1.8e15), which other tools use as versions
LAST_EPOCH = (1 << 15) - 1


def version(epoch: int, ordinal: int) -> int:
    """The version of the ``ordinal``-th record of a lineage in ``epoch``. Scanned items have ordinal 0."""
    if not FIRST_EPOCH <= epoch <= LAST_EPOCH:
        raise ValueError(f"epoch {epoch} is outside {FIRST_EPOCH}..{LAST_EPOCH}")
    if not 0 <= ordinal < 1 << ORDINAL_BITS:
        raise ValueError(f"ordinal {ordinal} does not fit {ORDINAL_BITS} bits")
    return epoch << ORDINAL_BITS | ordinal


def epoch_of(version: int) -> int:
    return version >> ORDINAL_BITS


@dataclass(frozen=True, slots=True)
class Position:
    """The last record read from a shard, and the number of records read so far from its lineage in this epoch.

    ``sequence`` is kept as AWS wrote it (digits, possibly with leading zeros, any length), because it is sent back. It
    is compared as an integer, and only within one shard. None: no record read yet.
    """

    sequence: str | None
    ordinal: int

    def __post_init__(self) -> None:
        if self.sequence is not None and not (self.sequence.isascii() and self.sequence.isdigit()):
            raise ValueError(f"a sequence number consists of digits, not {self.sequence!r}")
        if self.ordinal < 0:
            raise ValueError(f"an ordinal counts from 0, not {self.ordinal}")
