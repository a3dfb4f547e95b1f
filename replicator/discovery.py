"""What a listing of shards means for a running copy: new shards, forgettable ones, and gaps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from replicator import backfill, lineage
from replicator.checkpoints import ShardState
from replicator.errors import GapFound
from replicator.source import Listing

PATIENCE = 3  # complete listings in a row after which a shard that none shows is gone
ORPHAN_PATIENCE = 5  # complete listings in a row that show a shard but never its parent


@dataclass(frozen=True, slots=True)
class News:
    """New shards with their states, parents first, and ended shards that nothing asks for any more."""

    shards: Mapping[str, ShardState] = field(default_factory=dict)
    forgotten: frozenset[str] = frozenset()


@dataclass(slots=True)
class Discovery:
    """Remembers what listings showed, because one alone proves nothing: they may be stale, partial or contradictory."""

    misses: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    closed: set[str] = field(default_factory=set)
    listed: float | None = None  # when the last complete listing was asked for

    def news(self, known: Mapping[str, ShardState], listing: Listing) -> News:
        """What the listing adds to ``known``. GapFound for a shard, or a parent, that stays away."""
        found = lineage.merged(listing.shards)
        self.closed |= {s.id for s in found.values() if not s.open}
        fresh: dict[str, ShardState] = {}
        before = _before_epoch(known, found)
        for shard in lineage.newcomers(known, found):
            state = backfill.new_shard(shard, {**known, **fresh}, self.listed)
            fresh[shard.id] = replace(state, ended=True, whole=False) if shard.id in before else state
        if not listing.complete:
            return News(fresh)
        self._orphans(lineage.orphans(known, found))
        after = {**known, **fresh}
        missing = lineage.vanished(after, found)
        self._missing(after, missing)
        if not missing and not lineage.heirless(after, found):
            self.listed = listing.at  # else it is older than it says, and proves of no shard that it is young
        gone = lineage.forgettable(known, found, listing.at)
        self.closed -= gone
        return News(fresh, frozenset(gone))

    def read_from(self, shard: str) -> None:
        """A shard that hands out pages is there, whatever listings say."""
        self.misses.pop(shard, None)

    def _orphans(self, ids: Iterable[str]) -> None:
        self.waits = Counter({id: self.waits[id] + 1 for id in ids})
        for id, waited in self.waits.items():
            if waited >= ORPHAN_PATIENCE:
                raise GapFound(f"the shard's parent was not shown by {waited} listings: its records are lost", id)

    def _missing(self, known: Mapping[str, ShardState], ids: Iterable[str]) -> None:
        self.misses = Counter({id: self.misses[id] + 1 for id in ids})
        for id, missed in self.misses.items():
            if missed >= PATIENCE:
                raise GapFound(_loss(known[id]), id, known[id].sequence)


def _loss(missing: ShardState) -> str:
    if missing.ended:
        return "the shard is no longer listed, and no listing showed the shards after it: their records are lost"
    return "the shard is no longer listed, and it was not read to its end"


def _before_epoch(known: Mapping[str, ShardState], listed: Mapping[str, lineage.Shard]) -> set[str]:
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
