"""What the source produces: changes, the pages they come in, and shard listings."""

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
    removed by DynamoDB's time to live. A struct rather than a dataclass, because a busy shard has a million a minute.
    """

    key: Key
    version: int
    new: msgspec.Raw | bytes | None = None
    old: msgspec.Raw | bytes | None = None
    sequence: str | None = None
    created: float | None = None
    expired: bool = False


class Page(msgspec.Struct, frozen=True):
    """The result of one step of a shard reader. Empty pages are normal and mean nothing.

    ``records`` are in order and follow the previous page without a hole. ``ended``: the shard is closed and this was
    its last page. ``through``: every record created before that time was read, as far as a few empty pages can tell;
    None if unknown. ``since``: no unread record is older than that. ``missing``: the endpoint does not know the shard.
    ``rest``: minimum seconds until the next step. ``waiting_for``: why the step failed, if it will be repeated.
    ``size``: bytes in memory.
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
    """A stream record: a change without a version.

    ``expired``: DynamoDB's time to live removed the item, or may have done so before its image was looked up.
    """

    key: Key
    sequence: str
    created: float
    new: msgspec.Raw | bytes | None = None
    old: msgspec.Raw | bytes | None = None
    expired: bool = False


class OwnWrite(Record, frozen=True, gc=False):
    """A record, without images, that must not be copied: a pipeline wrote it, see ``replicator.marks``.

    It counts as the item's latest change all the same: it replaced what applications had written before.
    """


class ScanPage(msgspec.Struct, frozen=True):
    """The result of one step of a segment scan. ``cursor``: LastEvaluatedKey, None at the end of the segment.

    ``items``: keys and images; the image is None if the item was asked for and does not exist. ``before``: items of the
    segment before this page, if some may have been counted already (a file of an export that is read again).
    """

    segment: int
    items: Sequence[tuple[Key, msgspec.Raw | bytes | None]] = ()
    cursor: Mapping[str, Any] | None = None
    rest: float = 0.0
    waiting_for: str | None = None
    read_units: float = 0.0
    size: int = 0
    before: int | None = None

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
    """A shard listing from DescribeStream. ``complete``: whether all shards are included. ``at``: request time."""

    shards: tuple[Shard, ...]
    complete: bool
    status: str
    at: float
