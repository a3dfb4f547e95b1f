"""Which records a run lost, and which it only says it lost: kept beside the source, which forgets them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from replicator.checkpoints import PipelineState, ShardState, decode
from replicator.errors import GapFound

if TYPE_CHECKING:
    from tests.simulation.world import Universe

HOUR = 3600.0
RETENTION = 24 * HOUR  # that AWS promises
SKEWED = HOUR  # by which the clock may be behind that an epoch is dated with: its scan has what came until then
BOUND = 20 * HOUR  # that replicator promises: a copy that was live may be away for so long, whatever its shards do


class Records:
    """Every record of the table's stream, by shard, as (sequence, created). ``live``: when a run was, last."""

    def __init__(self) -> None:
        self.by_shard: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.opened: dict[str, float] = {}
        self.live = self._excused = 0.0

    def note(self, universe: Universe) -> None:
        """Remember the newest record of each shard."""
        if not (universe.scenario.months and universe.streaming):
            return
        for shard in universe.source.shards(universe.TABLE):
            self.opened[shard.id] = shard.opened
            known = self.by_shard[shard.id]
            if shard.sequences and (not known or known[-1][0] < shard.sequences[-1]):
                known.append((shard.sequences[-1], shard.created[-1]))

    def told_live(self, at: float) -> None:
        """A run was up to date then. What an absence before it may have cost shows within a day."""
        if at - self.live > BOUND:
            self._excused = at + RETENTION
        self.live = max(self.live, at)

    def judge(self, universe: Universe, gap: GapFound) -> None:
        """A gap is reported only if a needed record is gone, or if the copy was away for longer than promised."""
        if not universe.scenario.months:
            return
        away = universe.clock.now - self.live
        lost = any(created < universe.clock.now - RETENTION for _, created in self._unread(universe))
        excused = away > BOUND or universe.clock.now < self._excused
        assert lost or excused, f"a gap after {away / HOUR:.1f} hours, though nothing is lost: {gap}"

    def _unread(self, universe: Universe) -> Iterator[tuple[int, int]]:
        """Records that this epoch needs and has not stored."""
        shards, state = _stored(universe)
        for id, records in self.by_shard.items():
            shard = shards.get(id)
            if state is None or (shard is None and self.opened[id] < state.started) or (shard and shard.ended):
                continue
            position = int(shard.sequence) if shard is not None and shard.sequence is not None else -1
            yield from ((s, created) for s, created in records if s > position and created >= state.started)

    def check_complete(self, universe: Universe) -> None:
        """A copy that caught up read every record of its epoch: what a shard counts is what there was."""
        shards, state = _stored(universe)
        if not universe.scenario.months or state is None:
            return
        for id, shard in shards.items():
            parent = shards.get(shard.parent or "")
            if parent is None and (shard.parent is not None or shard.whole):
                continue  # nothing says any more where its ordinals began
            passed = shard.ordinal - (parent.ordinal if parent is not None else 0) if shard.sequence is not None else 0
            there = sum(created >= state.started + SKEWED for _, created in self.by_shard[id])
            assert passed >= there, f"{there} records of {id} were needed, {passed} were read"


def _stored(universe: Universe) -> tuple[dict[str, ShardState], PipelineState | None]:
    entries = universe.database.entries
    shards = {id: decode(kind, id, text) for (kind, id), (_, text) in entries.items() if kind == "shard"}
    state = decode("pipeline", "", entries["pipeline", ""][1]) if ("pipeline", "") in entries else None
    assert state is None or isinstance(state, PipelineState)
    return {id: s for id, s in shards.items() if isinstance(s, ShardState)}, state
