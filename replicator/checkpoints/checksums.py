"""Checksums of rows and of all of them together: a changed, missing, doubled or older row is recognised."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

_BYTES = 16
_WRAP = 1 << (8 * _BYTES)


def seal(*values: object) -> bytes:
    """The checksum of a row: of its values and of where each ends."""
    return hashlib.blake2b(msgspec.json.encode(values), digest_size=_BYTES).digest()


class Digest:
    """The sum of the seals of rows, whatever their order: one row more or less costs one addition."""

    def __init__(self, value: bytes = bytes(_BYTES)) -> None:
        self._sum = int.from_bytes(value)

    @classmethod
    def of(cls, seals: Iterable[bytes]) -> Digest:
        found = cls()
        for one in seals:
            found.replace(None, one)
        return found

    def replace(self, old: bytes | None, new: bytes | None) -> None:
        """Count ``new`` instead of ``old``; None is no row."""
        self._sum = (self._sum - int.from_bytes(old or b"") + int.from_bytes(new or b"")) % _WRAP

    @property
    def value(self) -> bytes:
        return self._sum.to_bytes(_BYTES)
