"""Slots where each shard has its own worker at any time, as behind AWS Lambda. Pure functions.

A lane is the slot of a shard, then of the shard that follows it: so there are as many as shards were ever open at once,
and a child finds in its own slot what its parent's worker has left in doubt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from replicator.pipeline.coordination import COORDINATOR
from replicator.pipeline.lineage import ancestors
from replicator.state import ShardState, Slot

PREFIX = "lambda-"  # of the names of lanes: other engines' slots have other names
HANDED_OVER = "lambda"  # noted with a run whose shards invocations follow


def is_lane(slot: str) -> bool:
    return slot.startswith(PREFIX)


def followed(writers: Collection[str]) -> bool:
    """Whether invocations follow the stream: all of the slots that may write are lanes."""
    return bool(writers) and all(is_lane(slot) for slot in writers)


def is_handed_over(slots: Mapping[str, Slot], run: int) -> bool:
    """Whether the run with this revision, the last one, has left the stream to invocations."""
    noted = slots.get(COORDINATOR)
    return noted is not None and noted.begun == run and noted.worker in ("", HANDED_OVER)  # "": of earlier versions


def assigned(shards: Mapping[str, ShardState]) -> dict[str, ShardState]:
    """The shards that need a lane and have none, each with its own: that of its parent, or a free one.

    A lane is free if no shard has it that may still be read. A child takes over its parent's unless another one has
    that: it is read only after its ancestors, which may have the lane, too.
    """
    parents = {id: shard.parent for id, shard in shards.items()}
    left = [id for id, shard in shards.items() if not shard.ended and not is_lane(shard.slot)]
    taken: dict[str, set[str]] = {}  # the shards of each lane that may still be read
    for id, shard in shards.items():
        if not shard.ended and is_lane(shard.slot):
            taken.setdefault(shard.slot, set()).add(id)
    given: dict[str, ShardState] = {}
    for id in sorted(left, key=lambda id: (len(ancestors([id], parents)), id)):
        parent, earlier = parents[id], ancestors([id], parents)
        known = shards.get(parent) if parent is not None else None
        before = given.get(parent, known) if parent is not None else None
        inherited = before is not None and is_lane(before.slot) and taken.get(before.slot, set()) <= earlier
        lane = before.slot if inherited and before is not None else _free(taken)
        taken.setdefault(lane, set()).add(id)
        given[id] = replace(shards[id], slot=lane)
    return given


def _free(taken: Collection[str]) -> str:
    return next(lane for n in range(len(taken) + 1) if (lane := f"{PREFIX}{n}") not in taken)


def unended_ancestors(shard: str, shards: Mapping[str, ShardState]) -> list[str]:
    """The ancestors of a shard that are not stored to their ends, oldest first."""
    found: list[str] = []
    parent = shards[shard].parent
    while parent is not None and parent in shards:
        found.append(parent)
        parent = shards[parent].parent
    return [id for id in reversed(found) if not shards[id].ended]
