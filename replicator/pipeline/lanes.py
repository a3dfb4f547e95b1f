"""Slots where each shard has its own worker at any time, as behind AWS Lambda. Pure functions.

A lane is the slot of a shard, then of the shard that follows it: so there are as many as shards were ever open at once,
and a child finds in its own slot what its parent's worker has left in doubt.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from replicator.pipeline import stages
from replicator.pipeline.coordination import COORDINATOR, knows, left_in_doubt
from replicator.pipeline.lineage import ancestors
from replicator.state import LONGEST_IN_DOUBT, PipelineState, ShardState, Slot

PREFIX = "lambda-"  # of the names of lanes: other engines' slots have other names
HANDED_OVER = "lambda"  # noted with a run whose shards invocations follow
NO_REPAIR = (
    "--repair is not supported with AWS Lambda: idle shards are not invoked, so they would leave no tombstones. Resync "
    "the table or single items: replicator resync CONFIG --key JSON, then replicator run CONFIG --until backfilled"
)
CLOCKS = 60.0  # seconds by which the clocks of two of Lambda's machines may differ


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


# What may be applied late, where the target has no transactions


@dataclass(frozen=True, slots=True)
class Standing:
    """What is stored of a pipeline as an invocation looks at it. ``retried``: notes of retries."""

    pipeline: PipelineState
    shards: Mapping[str, ShardState]
    slots: Mapping[str, Slot]
    retried: int


def in_doubt_until(lane: str, at: Standing, now: float) -> float:
    """Until when requests may be applied that deletes of an invocation which claims ``lane`` now must outlive.

    They must leave tombstones until then: those requests are of the lane's last invocation, of the ones that stored the
    parents of its shards, and of commands; and, the first time after a scan, of all that scanned or stored meanwhile.
    The time is by the clock of the container, or the command, that sent them. 0.0: there are none, and a purge since
    then has left no tombstones.
    """
    own = at.slots.get(lane)
    if own is None or own.retried != at.retried:
        return now + LONGEST_IN_DOUBT
    after_scan = 0.0 if knows(own, at.pipeline) else now + CLOCKS  # so that the tombstones of the scan are purged
    return max([after_scan, _own_until(own, now), *_until_of_others(lane, own, at, now)])


def _own_until(slot: Slot, now: float) -> float:
    if slot.until is not None:
        return slot.until
    return now + slot.lingers if slot.lingers else 0.0


def _until_of_others(lane: str, own: Slot, at: Standing, now: float) -> Iterator[float]:
    """Of parents once their child has begun, the child's own lane knows; and of scans, once it knows the stage."""
    if stages.remembers_deletes(at.pipeline):
        return
    others = {id: slot for id, slot in at.slots.items() if id not in (lane, COORDINATOR)}
    if knows(own, at.pipeline):
        unbegun = [s for s in at.shards.values() if s.slot == lane and not s.ended and s.sequence is None]
        parents = {at.shards[s.parent].slot for s in unbegun if s.parent is not None and s.parent in at.shards}
        others = {id: slot for id, slot in others.items() if id in parents}
    for slot in others.values():
        if slot.until is not None:
            yield slot.until
        elif left := left_in_doubt(slot, at.pipeline):
            yield now + left


def window_of(until: float, now: float) -> float:
    """Seconds of the in-doubt window of an invocation: what is left by its own clock, whatever others' show."""
    return min(LONGEST_IN_DOUBT, until + CLOCKS - now) if until else 0.0


def left_of(slot: Slot, now: float) -> float:
    """Seconds for which requests of the slot may still be applied."""
    return slot.in_doubt if slot.until is None else max(0.0, window_of(slot.until, now))


def in_charge(slots: Mapping[str, Slot], pipeline: PipelineState) -> dict[str, Slot]:
    """The slots that say what may be applied late: lanes alone, once each knows what was in doubt after the scan."""
    found = {id: slot for id, slot in slots.items() if is_lane(id)}
    return found if found and all(knows(slot, pipeline) for slot in found.values()) else dict(slots)


def may_purge(at: Standing, now: float) -> bool:
    """Whether no lane needs the tombstones that were listed before ``at`` was read.

    Each one has stored that it knows the stage and commands' retries, and no request of it may be applied any more. One
    whose requests come to be in doubt later stores that before it leaves the tombstones that it needs for them.
    """
    found = [slot for id, slot in at.slots.items() if is_lane(id)]
    return all(knows(s, at.pipeline) and s.retried == at.retried and not left_of(s, now) for s in found)


def owes_purge(at: Standing, purged: float) -> bool:
    """Whether tombstones may be left. ``purged``: when the last purge that came to its end began, 0.0 if none did.

    A container leaves them for CLOCKS longer than a request may be applied, by a clock that may be as much behind the
    one by which the purge began.
    """
    found = [slot for id, slot in at.slots.items() if is_lane(id)]
    return any(s.until is None and s.in_doubt for s in found) or any(
        (s.until or 0.0) + 2 * CLOCKS >= purged for s in found
    )


def unattended(at: Standing) -> list[str]:
    """Lanes that hold up a purge, and to which no event or idle shard brings an invocation: all they had has ended."""
    read = {shard.slot for shard in at.shards.values() if not shard.ended}
    found = {id: slot for id, slot in at.slots.items() if is_lane(id) and id not in read}
    return sorted(
        id
        for id, slot in found.items()
        if not knows(slot, at.pipeline) or slot.retried != at.retried or (slot.until is None and slot.in_doubt)
    )
