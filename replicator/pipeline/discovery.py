"""What a listing of shards means for a running copy: new shards, forgettable ones, and gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from replicator import change, retention
from replicator.change import Listing
from replicator.errors import GapFound
from replicator.pipeline import lineage, stages
from replicator.state import ShardState

PATIENCE = 3  # complete listings in a row after which a shard that none shows is gone
LEAF_PATIENCE = 10  # complete listings in a row that show a closed shard without a child: more than a minute of them
SETTLED = 15 * 60.0  # seconds after a shard's end: one listing that shows it without a child is enough by then
ORPHAN_PATIENCE = 5  # complete listings in a row that show a shard but never its parent


@dataclass(frozen=True, slots=True)
class News:
    """New shards with their states, parents first, and ended shards that nothing asks for any more.

    ``finished``: known shards that turned out to be at their end, and to have no children.
    """

    shards: Mapping[str, ShardState] = field(default_factory=dict)
    forgotten: frozenset[str] = frozenset()
    finished: frozenset[str] = frozenset()


@dataclass(slots=True)
class Discovery:
    """Remembers what listings showed, because one alone proves nothing: they may be stale, partial or contradictory."""

    misses: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    barren: Counter[str] = field(default_factory=Counter)
    bare: dict[str, float] = field(default_factory=dict)  # closed shards without a child, since they were seen so
    leaves: set[str] = field(default_factory=set)  # those that have none, read to their end or not
    unknown: set[str] = field(default_factory=set)  # shards that the endpoint does not know, though nothing can be lost
    closed: set[str] = field(default_factory=set)
    listed: float | None = None  # when the last complete listing was asked for

    def news(self, known: Mapping[str, ShardState], listing: Listing) -> News:
        """What the listing adds to ``known``. GapFound for a shard, or a parent, that stays away."""
        found = lineage.merged(listing.shards)
        self.closed |= {s.id for s in found.values() if not s.open}
        fresh: dict[str, ShardState] = {}
        before = _before_epoch(known, found)
        for shard in lineage.newcomers(known, found):
            state = stages.new_shard(shard, {**known, **fresh}, self.listed)
            fresh[shard.id] = replace(state, ended=True, whole=False) if shard.id in before else state
        if not listing.complete:
            return News(fresh)
        orphans = lineage.orphans(known, found)
        self._orphans(orphans)
        after = {**known, **fresh}
        missing = lineage.vanished(after, found) - self.leaves
        finished = self._missing(after, missing, listing.at)
        if not missing and not orphans:
            self._leaves(after, lineage.heirless(after, found), found, listing.at)
            if not lineage.heirless(after, found) - self.leaves:
                self.listed = listing.at  # else it is older than it says, and proves of no shard that it is young
        finished |= self.leaves & lineage.childless(after)
        gone = lineage.forgettable(known, found, listing.at)
        self.closed -= gone
        self.leaves -= gone
        return News(fresh, frozenset(gone), frozenset(finished))

    def read_from(self, shard: str) -> None:
        """A shard that hands out pages is there, whatever listings say."""
        self.misses.pop(shard, None)
        self.unknown.discard(shard)

    def not_found(self, shard: str) -> None:
        """The endpoint knows no such shard, and nothing that is needed of it is old enough to be gone."""
        self.unknown.add(shard)

    def _orphans(self, ids: Iterable[str]) -> None:
        self.waits = Counter({id: self.waits[id] + 1 for id in ids})
        for id, waited in self.waits.items():
            if waited >= ORPHAN_PATIENCE:
                raise GapFound(f"the shard's parent was not shown by {waited} listings: its records are lost", id)

    def _missing(self, known: Mapping[str, ShardState], ids: Iterable[str], now: float) -> set[str]:
        """Missing shards that are at their end, and after which nothing comes: else GapFound.

        A shard is listed for as long as something in it is younger than a day. So an unfinished one that is gone though
        nothing that is needed of it is so old had nothing more to give, and an ended one had no such children.
        """
        self.misses = Counter({id: self.misses[id] + 1 for id in ids})
        gone = {id for id, missed in self.misses.items() if missed >= PATIENCE}
        for id in sorted(gone - self.unknown):
            state = known[id]
            if not state.ended or now - state.since >= retention.SAFE_AGE:
                raise GapFound(_loss(state), id, state.sequence)
        return gone

    def _leaves(
        self, known: Mapping[str, ShardState], heirless: set[str], listed: Mapping[str, change.Shard], now: float
    ) -> None:
        """Find shards that have no children: not all get some, and a child is listed soon after its parent closed.

        When that was is unknown for those that were closed as the epoch began, mostly long before.
        """
        closed = {id: known[id] for id in heirless if id in known and id in listed and not listed[id].open}
        self.barren = Counter({id: self.barren[id] + 1 for id in closed})
        self.bare = {id: self.bare.get(id, _end(state, now)) for id, state in closed.items()}
        settled = {id for id, since in self.bare.items() if now - since >= SETTLED}
        older = {id for id, state in closed.items() if state.ended and state.through is None}
        children = {state.parent for state in known.values()}
        self.leaves -= children
        self.leaves |= settled | {id for id in older if self.barren[id] >= LEAF_PATIENCE}


def _end(state: ShardState, now: float) -> float:
    """A time by which the shard had ended."""
    return min(now, state.through or state.since) if state.ended else now


def _loss(missing: ShardState) -> str:
    if missing.ended:
        return "the shard is no longer listed, and no listing showed the shards after it: their records are lost"
    return "the shard is no longer listed, and it was not read to its end"


def _before_epoch(known: Mapping[str, ShardState], listed: Mapping[str, change.Shard]) -> set[str]:
    """Ancestors of the shards that were there when the epoch began: they had closed, and hold nothing we need.

    GapFound if one of them was taken for new, because listings had left out what lies between, and is being read.
    """
    parents = {id: s.parent for id, s in known.items()} | {id: s.parent for id, s in listed.items()}
    found = lineage.ancestors([id for id, s in known.items() if not s.whole], parents)
    hidden = lineage.ancestors(found - known.keys(), parents)  # what listings had left out lay behind these
    for id in found & known.keys():
        state = known[id]
        being_read = not state.ended or state.anchor is not None or state.sequence is not None
        if being_read and (state.whole or id in hidden):
            raise GapFound("listings contradicted each other: an old shard was taken for a younger one", id)
    return found
