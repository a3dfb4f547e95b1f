"""Restored copies of the store whose age nothing reveals, so that only an explicit resync repairs the target.

Inside one epoch a store that was put back looks like one whose run was stopped then, which harms nothing: what comes
again has the versions it had. Not so where a shard was begun since, and is begun elsewhere now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from replicator.pipeline.lineage import ancestors
from replicator.state import ShardState, decode
from tests.simulation import truth

if TYPE_CHECKING:
    from tests.simulation.world import Universe


def misleads(world: Universe, taken: int, copy: truth.Entries) -> bool:
    """Whether a run that goes on from ``copy``, of step ``taken``, may leave the target wrong without noticing it."""
    known = _shards(copy)
    begun = {id: s for id, s in _shards(world.database.entries).items() if s.anchor is not None}
    return _given_up(world, taken) or _of_age(world, known, begun) or _hidden(world, known, begun)


def _given_up(world: Universe, taken: int) -> bool:
    """An older copy was put back since: this one holds positions that the target has not been brought to again."""
    return any(older < taken <= put_back for older, put_back in world.put_back)


def _of_age(world: Universe, known: Mapping[str, ShardState], begun: Mapping[str, ShardState]) -> bool:
    """A shard was begun at the oldest record there was, and that one may be trimmed by now: ordinals start lower."""
    if not world.scenario.trims or world.scenario.dialect.at_timestamp:
        return False
    return any(id in begun and not s.whole and s.anchor is None for id, s in known.items())


def _hidden(world: Universe, known: Mapping[str, ShardState], begun: Mapping[str, ShardState]) -> bool:
    """An old shard was taken for a younger one; the run that began it would have found that out, and a gap."""
    parents = {shard.id: shard.parent for shard in world.source.shards(world.TABLE)} if world.streaming else {}
    old = ancestors([id for id, s in known.items() if not s.whole], parents)
    return any(id in old and id not in known for id in begun)


def _shards(entries: truth.Entries) -> dict[str, ShardState]:
    states = {id: decode(kind, id, text) for (kind, id), (_, text) in entries.items() if kind == "shard"}
    return {id: state for id, state in states.items() if isinstance(state, ShardState)}
