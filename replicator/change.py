"""The nouns of the source: keys, changes, and the pages they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from replicator.key import Key


class Change(msgspec.Struct, frozen=True, gc=False):
    """One stream record or one scanned item.

    ``new`` and ``old`` are images in DynamoDB's typed JSON; a change without ``new`` is a removal. ``version`` orders
    the changes of an item. ``sequence`` and ``created`` (seconds since 1970) are None for a scanned item. ``expired``:
    DynamoDB's time to live removed it. A struct rather than a dataclass because a busy shard makes a million a minute.
    """

    key: Key
    version: int
    new: msgspec.Raw | bytes | None = None
    old: msgspec.Raw | bytes | None = None
    sequence: str | None = None
    created: float | None = None
    expired: bool = False


class Page(msgspec.Struct, frozen=True):
    """What one step of a shard's reader found; empty pages are normal and mean nothing.

    ``records`` are in order and follow what was passed before without a hole. ``ended``: the shard is closed and this
    was its last page. ``through``: every record created before that time has been read, as far as a few empty pages can
    tell; None where that is unknown. ``since``: nothing that was not read yet is older than that. ``missing``: the
    endpoint says that there is no such shard. ``rest``: seconds that the next step should wait at least.
    ``waiting_for``: why the step found nothing, if it failed and will be repeated. ``size``: bytes held.
    """

    shard: str
    records: Sequence[Record] = ()
    ended: bool = False
    through: float | None = None
    rest: float = 0.0
    waiting_for: str | None = None
    size: int = 0
    since: float = 0.0
    missing: bool = False


class Record(msgspec.Struct, frozen=True, gc=False):
    """One stream record as it was read: a change that has no version yet.

    ``expired``: DynamoDB's time to live removed the item, or may have before its image could be looked up.
    """

    key: Key
    sequence: str
    created: float
    new: msgspec.Raw | bytes | None = None
    old: msgspec.Raw | bytes | None = None
    expired: bool = False


class ScanPage(msgspec.Struct, frozen=True):
    """What one step of a segment's scan found. ``cursor`` is where the next step starts (None: at its end)."""

    segment: int
    items: Sequence[tuple[Key, msgspec.Raw | bytes]] = ()
    cursor: Mapping[str, Any] | None = None
    rest: float = 0.0
    waiting_for: str | None = None
    read_units: float = 0.0
    size: int = 0

    @property
    def ended(self) -> bool:
        return self.cursor is None and self.waiting_for is None


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard as DescribeStream lists it; ``last`` is None while it is open."""

    id: str
    parent: str | None = None
    first: str | None = None
    last: str | None = None

    @property
    def open(self) -> bool:
        return self.last is None


@dataclass(frozen=True, slots=True)
class Listing:
    """What DescribeStream told: shards in any order, whether these are all, and the stream's status."""

    shards: tuple[Shard, ...]
    complete: bool
    status: str
    at: float
