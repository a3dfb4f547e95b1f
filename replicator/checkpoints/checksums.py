"""Checksums per row and over all rows, to detect changed, missing, duplicate or outdated rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

_BYTES = 16
_WRAP = 1 << (8 * _BYTES)


def seal(*values: object) -> bytes:
    """The checksum of a row's values, including their boundaries."""
    return hashlib.blake2b(msgspec.json.encode(values), digest_size=_BYTES).digest()


class Digest:
    """The sum of all rows' checksums, independent of their order, so that a row is added or removed incrementally."""

    def __init__(self, value: bytes = bytes(_BYTES)) -> None:
        self._sum = int.from_bytes(value)

    @classmethod
    def of(cls, seals: Iterable[bytes]) -> Digest:
        digest = cls()
        for each in seals:
            digest.replace(None, each)
        return digest

    def replace(self, old: bytes | None, new: bytes | None) -> None:
        """Replace the checksum ``old`` by ``new``; None stands for no row."""
        self._sum = (self._sum - int.from_bytes(old or b"") + int.from_bytes(new or b"")) % _WRAP

    @property
    def value(self) -> bytes:
        return self._sum.to_bytes(_BYTES)
