"""Interprets shard listings during a run: new shards, finished ones, forgettable ones, and gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from replicator import change, retention
from replicator.change import Listing
from replicator.errors import GapFound
from replicator.pipeline import lineage, stages
from replicator.state import Orphan, ShardState

MISSING_LIMIT = 3  # consecutive complete listings without a shard, after which it is gone
LEAF_LIMIT = 10  # consecutive complete listings of a closed shard without a child, over more than a minute
SETTLED = 15 * 60.0  # seconds after a shard's end from which on one listing without a child is enough
ORPHAN_LIMIT = 5  # consecutive complete listings of a shard without its parent, after which that may be a gap
YOUNG_ORPHAN_LIMIT = 10  # of them where nothing of the parent can have been trimmed yet,
ORPHAN_TIME = 5 * 60.0  # and the seconds that they must cover: fewer prove little if the process was suspended between
ORPHAN_PAUSE = ORPHAN_TIME / 2  # seconds without a listing after which another process counts from the beginning


@dataclass(frozen=True, slots=True)
class News:
    """``shards``: new shards, parents first. ``forgotten``: shards whose entries may be removed.

    ``finished``: known shards found to be at their end, without children.
    """

    shards: Mapping[str, ShardState] = field(default_factory=dict)
    forgotten: frozenset[str] = frozenset()
    finished: frozenset[str] = frozenset()


@dataclass(slots=True)
class Discovery:
    """Remembers past listings, because a single one may be stale, partial or contradictory.

    ``needed_since``: the time of an existing export whose items the epoch copies. Shards of before the epoch are needed
    if they may have records of later: all of those that its first listing had.
    """

    misses: Counter[str] = field(default_factory=Counter)
    orphaned: dict[str, Orphan] = field(default_factory=dict)
    barren: Counter[str] = field(default_factory=Counter)
    bare: dict[str, float] = field(default_factory=dict)  # closed shards without a child, and since when
    leaves: set[str] = field(default_factory=set)  # shards without children, whether or not read to their end
    unknown: set[str] = field(default_factory=set)  # shards that the endpoint does not know, without any loss
    closed: set[str] = field(default_factory=set)
    listed: float | None = None  # when the last complete listing was requested
    begun: float | None = None  # when the epoch began: no record of before is needed
    needed_since: float | None = None

    def news(self, known: Mapping[str, ShardState], listing: Listing) -> News:
        """What the listing adds to ``known``. GapFound if a needed shard, or a parent, is missing for too long."""
        listed = lineage.merged(listing.shards)
        self.closed |= {s.id for s in listed.values() if not s.open}
        new: dict[str, ShardState] = {}
        before = _before_epoch(known, listed)
        split = {state.parent for state in known.values() if state.parent is not None}
        for shard in lineage.newcomers(known, listed):
            # One whose sibling is known was there before: the last listing omitted it, and does not bound its age.
            bound = _believed([self.begun], listing.at) if shard.parent in split else self._bound(listing.at)
            state = stages.new_shard(shard, {**known, **new}, bound)
            if shard.id not in before:
                new[shard.id] = state
                continue
            self._check_not_needed(shard.id, listing.at)
            new[shard.id] = replace(state, ended=True, whole=False)
        if not listing.complete:
            return News(new)
        orphans = lineage.orphans(known, listed)
        self._orphans(orphans, listed, listing.at)
        after = {**known, **new}
        missing = lineage.vanished(after, listed) - self.leaves
        finished = self._missing(after, missing, listing.at)
        if not missing and not orphans:
            self._leaves(after, lineage.heirless(after, listed), listed, listing.at)
            if not lineage.heirless(after, listed) - self.leaves:
                self.listed = listing.at  # otherwise the listing is stale and does not bound the age of new shards
        finished |= self.leaves & lineage.childless(after)
        gone = lineage.forgettable(known, listed, listing.at)
        self.closed -= gone
        self.leaves -= gone
        return News(new, frozenset(gone), frozenset(finished))

    def _check_not_needed(self, shard: str, now: float) -> None:
        if self.needed_since is not None and now - self.needed_since < lineage.KEPT:
            raise GapFound(
                "the listing with which the epoch began lacked the shard, which may have changes since the export",
                shard,
                of_target=True,  # its records may be older than what is stored of other shards
            )

    def _bound(self, now: float) -> float | None:
        """A time before which no needed record of a new shard was created. None if that is unknown.

        A time in the future proves nothing. ``now`` is when a listing was requested that was answered, so the clock is
        right then: AWS rejects other signatures. It may have been wrong when the process began.
        """
        return _believed([self.listed, self.begun], now)

    def read_from(self, shard: str) -> None:
        """Note that the shard returned a page, so that it exists whatever listings say."""
        self.misses.pop(shard, None)
        self.unknown.discard(shard)

    def not_found(self, shard: str) -> None:
        """Note that the endpoint does not know the shard, although nothing needed in it can have expired yet."""
        self.unknown.add(shard)

    def _orphans(self, ids: Collection[str], listed: Mapping[str, change.Shard], now: float) -> None:
        """GapFound if a parent is missing for too long.

        A shard whose parent is listed is not counted: that parent waits for its own.

        Nothing needed of a parent that the last listing lacked is older than that listing. So for a day no trimming
        explains that it is missing, and the gap that a few listings would report is false if the next one shows it.
        """
        waits = {id for id in ids if listed[id].parent in listed}
        self.orphaned = {id: Orphan(now, now, 0) if id in waits else _again(self.orphaned.get(id), now) for id in ids}
        bound = self._bound(now)
        young = bound is not None and now - bound < retention.SAFE_AGE
        limit, time = (YOUNG_ORPHAN_LIMIT, ORPHAN_TIME) if young else (ORPHAN_LIMIT, 0.0)
        for id, orphan in self.orphaned.items():
            if orphan.listings >= limit and now - orphan.since >= time:
                reason = f"the shard's parent is missing from {orphan.listings} listings: its records are lost"
                raise GapFound(reason, id, since=bound, of_target=bound is None)

    def _missing(self, known: Mapping[str, ShardState], ids: Iterable[str], now: float) -> set[str]:
        """Missing shards that are at their end and have no children. GapFound if a missing one may have lost records.

        A shard is listed as long as any record in it is younger than a day. So if a shard disappears before anything
        needed in it can be that old, it had no further records (unfinished) or no children (ended). An unfinished one
        is still asked for its records: listings may have omitted it while it waited for its parent, or for room.
        """
        self.misses = Counter({id: self.misses[id] + 1 for id in ids})
        gone = {id for id, missed in self.misses.items() if missed >= MISSING_LIMIT}
        for id in sorted(gone - self.unknown):
            state = known[id]
            if not _complete(state, now):
                raise GapFound(_loss(state), id, state.sequence)
        return {id for id in gone if id in self.unknown or known[id].ended}

    def _leaves(
        self, known: Mapping[str, ShardState], heirless: set[str], listed: Mapping[str, change.Shard], now: float
    ) -> None:
        """Find leaves. Not every shard gets children; those that do get them listed soon after they close.

        For shards that were closed before the epoch, the time of closing is unknown, but mostly long ago.
        """
        closed = {id: known[id] for id in heirless if id in known and id in listed and not listed[id].open}
        self.barren = Counter({id: self.barren[id] + 1 for id in closed})
        self.bare = {id: self.bare.get(id, _end(state, now)) for id, state in closed.items()}
        settled = {id for id, since in self.bare.items() if now - since >= SETTLED}
        older = {id for id, state in closed.items() if state.ended and state.through is None}
        children = {state.parent for state in known.values()}
        self.leaves -= children
        self.leaves |= settled | {id for id in older if self.barren[id] >= LEAF_LIMIT}


def _believed(times: Iterable[float | None], now: float) -> float | None:
    """The latest of them, as far as the clock was right."""
    return max((at for at in times if at is not None and at - now <= retention.CLOCKS), default=None)


def _again(orphan: Orphan | None, now: float) -> Orphan:
    return (
        Orphan(now, now, 1)
        if orphan is None or not orphan.listings
        else replace(orphan, last=now, listings=orphan.listings + 1)
    )


def _end(state: ShardState, now: float) -> float:
    """A time by which the shard had ended."""
    return min(now, state.through or state.since) if state.ended else now


def _complete(state: ShardState, now: float) -> bool:
    """Whether nothing that is needed of a shard, or of its children if it has ended, can have been trimmed."""
    if state.ended:
        return now - state.since < retention.SAFE_AGE
    return retention.complete(max(state.since, state.created or 0.0), state.through, now)


def _loss(missing: ShardState) -> str:
    if missing.ended:
        return "the shard is no longer listed, and its children were never listed: their records are lost"
    return "the shard is no longer listed, and it was not read to its end"


def _before_epoch(known: Mapping[str, ShardState], listed: Mapping[str, change.Shard]) -> set[str]:
    """Ancestors of shards that existed when the epoch began: they were closed already and are not needed.

    GapFound if one of them was mistaken for a new shard and is being read, because listings omitted the shards between.
    """
    parents = {id: s.parent for id, s in known.items()} | {id: s.parent for id, s in listed.items()}
    older = lineage.ancestors([id for id, s in known.items() if not s.whole], parents)
    hidden = lineage.ancestors(older - known.keys(), parents)  # those behind shards that listings omitted
    for id in older & known.keys():
        state = known[id]
        being_read = not state.ended or state.anchor is not None or state.sequence is not None
        if being_read and (state.whole or id in hidden):
            reason = "listings contradicted each other: an old shard was mistaken for a new one"
            raise GapFound(reason, id, of_target=True)  # documents may show changes of long before
    return older
