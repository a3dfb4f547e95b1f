"""A stream: routes changes to shards, encodes records, and ages shards."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import msgspec

from replicator.testing.dynamodb.refusals import unknown_shard
from replicator.testing.dynamodb.sequences import Numbering, Sequences
from replicator.testing.dynamodb.shards import Shard

RETENTION = 24 * 3600.0
VIEWS = ("KEYS_ONLY", "NEW_IMAGE", "OLD_IMAGE", "NEW_AND_OLD_IMAGES")
HASHES = 1 << 64
EXPIRY = b',"userIdentity":{"PrincipalId":"dynamodb.amazonaws.com","Type":"Service"}'


@lru_cache(maxsize=4096)
def hashed(partition: str) -> int:
    """The hash of a partition key, used for both shards and scan segments."""
    return int.from_bytes(hashlib.md5(partition.encode(), usedforsecurity=False).digest()[:8])


@lru_cache(maxsize=4096)
def _share(shard: str) -> float:
    """Which part of the longest time it stays listed: a number between 0 and 1 that is the shard's own."""
    return random.Random(shard).random()


class Change(msgspec.Struct, frozen=True):
    """What happened to an item: key and images as stored, None where there is none, and the bytes of each."""

    key: bytes
    old: bytes | None
    new: bytes | None
    sizes: tuple[int, int, int]
    expired: bool = False

    @property
    def event(self) -> str:
        if self.old is None:
            return "INSERT"
        return "REMOVE" if self.new is None else "MODIFY"

    def seen(self, view: str) -> tuple[bytes | None, bytes | None, int]:
        """Old and new image as far as a stream with this view has them, and the bytes of the record."""
        key, old, new = self.sizes
        has_old, has_new = view in ("OLD_IMAGE", "NEW_AND_OLD_IMAGES"), view in ("NEW_IMAGE", "NEW_AND_OLD_IMAGES")
        size = key + (old if has_old else 0) + (new if has_new else 0)
        return self.old if has_old else None, self.new if has_new else None, size


@dataclass(frozen=True, slots=True)
class Origin:
    """A stream's table and identity."""

    arn: str
    label: str
    table: str
    view: str
    region: str
    key_schema: tuple[dict[str, str], ...]


class Stream:
    """A table's stream. Each partition key belongs to exactly one open shard."""

    def __init__(
        self,
        origin: Origin,
        shards: int,
        numbering: Numbering,
        now: Callable[[], float],
        random: random.Random,
        lingering: float = 0.0,
        enabling: float = 0.0,
    ) -> None:
        self.origin = origin
        self.created = now()
        self._begins = self.created + enabling
        self.disabled: float | None = None
        self.numbering = numbering
        self._now = now
        self._random = random
        self._lingering = lingering
        self._sequences = Sequences(numbering, random)
        self._shards: dict[str, Shard] = {}
        self._open: list[Shard] = []  # by their hash ranges
        self._starts: list[int] = []
        self._opened = 0  # milliseconds in the newest shard's id
        self._prefix = f'{{"awsRegion":"{origin.region}","dynamodb":{{"ApproximateCreationDateTime":'.encode()
        edges = [HASHES * i // shards for i in range(shards + 1)]
        self._replace([], [self._new(None, range(*pair)) for pair in pairwise(edges)])

    @property
    def enabled(self) -> bool:
        return self.disabled is None

    @property
    def status(self) -> str:
        """StreamStatus. While it is ENABLING, the stream has no shards, and changes are not added to it."""
        if not self.enabled:
            return "DISABLED"
        return "ENABLING" if self._now() < self._begins else "ENABLED"

    @property
    def shards(self) -> list[Shard]:
        """All shards that still exist, oldest first."""
        if self._now() < self._begins:
            return []
        oldest = self._now() - RETENTION
        return [shard for shard in list(self._shards.values()) if self._remains(shard, oldest)]

    def shard(self, id: str) -> Shard:
        shard = self._shards.get(id)
        if shard is None or not self._remains(shard, self._now() - RETENTION):
            raise unknown_shard(id)
        return shard

    def emit(self, hash: int, change: Change) -> None:
        """Append a change's record to the shard of its key, unless the stream is still being enabled."""
        if self.status == "ENABLING":
            return
        shard = self._open[bisect_right(self._starts, hash) - 1]
        sequence, created = self._sequences.after(shard.last), int(self._now())
        shard.append(sequence, created, *self._record(sequence, created, change))

    def split(self, id: str) -> tuple[str, str]:
        """Close a shard; two children take half of its hashes each."""
        parent = self._closing(id)
        middle = (parent.hashes.start + parent.hashes.stop) // 2
        halves = range(parent.hashes.start, middle), range(middle, parent.hashes.stop)
        left, right = (self._new(parent.id, half) for half in halves)
        self._replace([parent], [left, right])
        return left.id, right.id

    def roll(self, id: str) -> str:
        """Close a shard; one child takes all of its hashes."""
        parent = self._closing(id)
        child = self._new(parent.id, parent.hashes)
        self._replace([parent], [child])
        return child.id

    def wither(self, id: str) -> str:
        """Close a shard; besides the child that takes its hashes there is one that closes at once, a leaf for ever."""
        parent = self._closing(id)
        leaf = self._new(parent.id, range(parent.hashes.start, parent.hashes.start))
        leaf.end, leaf.closed = self._sequences.after(leaf.last), self._now()
        child = self._new(parent.id, parent.hashes)
        self._replace([parent], [child])
        return leaf.id

    def disable(self) -> None:
        """Close all shards; what they hold stays readable until it is trimmed."""
        self.disabled = self._now()
        self._replace([self._closing(shard.id) for shard in self._open], [])

    def _closing(self, id: str) -> Shard:
        shard = self.shard(id)
        if not shard.open:
            raise ValueError(f"shard {id} is closed already")
        # AWS does not guarantee that the end is a record's number, so here it never is.
        shard.end, shard.closed = self._sequences.after(shard.last), self._now()
        return shard

    def _new(self, parent: str | None, hashes: range) -> Shard:
        start = self._sequences.opening()
        self._opened = max(self._opened + 1, int(self._now() * 1000))
        id = f"shardId-{self._opened:020d}-{self._random.getrandbits(32):08x}"
        shard = Shard(id, parent, hashes, start, last=start, trimmed=start - 1, opened=self._now())
        self._shards[id] = shard
        return shard

    def _replace(self, gone: list[Shard], new: list[Shard]) -> None:
        staying = [shard for shard in self._open if shard not in gone]
        self._open = sorted(staying + new, key=lambda shard: shard.hashes.start)
        self._starts = [shard.hashes.start for shard in self._open]

    def _remains(self, shard: Shard, oldest: float) -> bool:
        """Trim what is older than 24 hours; a shard that closed so long ago is forgotten, sooner or later."""
        if shard.created and shard.created[0] < oldest:
            shard.trim_older(oldest)
        if shard.closed is None or shard.closed >= oldest or shard.closed >= oldest - self._lingers(shard):
            return True
        self._shards.pop(shard.id, None)
        return False

    def _lingers(self, shard: Shard) -> float:
        """Seconds for which an empty shard is still listed: each has its own, so they go in any order."""
        return self._lingering * _share(shard.id) if self._lingering else 0.0

    def _record(self, sequence: int, created: int, change: Change) -> tuple[bytes, int]:
        """A record as it is answered with, and its bytes as AWS counts them."""
        view = self.origin.view
        old, new, size = change.seen(view)
        parts = [self._prefix, _seconds(created), b',"Keys":', change.key]
        if new is not None:
            parts += [b',"NewImage":', new]
        if old is not None:
            parts += [b',"OldImage":', old]
        parts.append(
            f',"SequenceNumber":"{self.numbering.text(sequence)}","SizeBytes":{size},'
            f'"StreamViewType":"{view}"}},"eventID":"{self._random.getrandbits(128):032x}",'
            f'"eventName":"{change.event}","eventSource":"aws:dynamodb","eventVersion":"1.1"'.encode()
        )
        parts.append(EXPIRY + b"}" if change.expired else b"}")
        return b"".join(parts), size


def _seconds(created: int) -> bytes:
    """Whole seconds the way AWS writes them: 1.46480431E9."""
    digits = str(created)
    if created < 10**7:
        return f"{digits}.0".encode()
    return f"{digits[0]}.{digits[1:].rstrip('0') or '0'}E{len(digits) - 1}".encode()
