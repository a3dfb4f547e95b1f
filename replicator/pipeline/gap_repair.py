"""What a repair of a gap from incremental exports must cover. Pure functions.

An incremental export has the net changes of its window, and no line for an item that was inserted and deleted within
it. So it must begin before the first lost record, and what the stream had delivered of the time since then must be
looked up: a document of such an item would stay. Floors tell which documents that may be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replicator.errors import GapFound
from replicator.pipeline import lineage, stages
from replicator.state import Floor, GapRepair, PipelineState, ShardState
from replicator.version import version

OVERLAP = 900.0  # seconds by which the windows extend beyond the gap, at each end
CLOCKS = 600.0  # seconds by which times of two clocks may differ, each being five minutes off
MINUTE = 60.0
SHORTEST, LONGEST = 900.0, 86_400.0  # seconds of an export's window
APART = 900.0  # seconds between two floors, at least


def stored_until(shards: Mapping[str, ShardState], lost: str | None = None) -> float | None:
    """Every record of before is stored; None if no shard tells.

    A shard that ended tells it of its unknown children. Those known to have none only count if there are no others: the
    stream has ended then. So does the one that has ``lost`` records, which may have been taken for such a shard.
    """
    last = {id for id, shard in shards.items() if not shard.ended} | lineage.childless(shards)
    counted = last or {id for id, s in shards.items() if s.leaf}
    if lost is not None and lost in shards:
        counted.add(lost)
    states = [stages.start(shards[id], shards) for id in counted]
    return min((max(s.since, s.created or 0.0) for s in states), default=None)


def first_loss(gap: GapFound, shards: Mapping[str, ShardState]) -> float | None:
    """The time before which no change is lost; None if unknown. No position tells what an unlisted shard has lost."""
    if gap.of_target:
        return None
    times = [at for at in (stored_until(shards, gap.shard), gap.since) if at is not None]
    return min(times, default=None)


def last_record(state: PipelineState, shards: Mapping[str, ShardState]) -> float:
    """A time when the stream was enabled: that of the newest record stored, or when the epoch began."""
    return max((s.created for s in shards.values() if s.created is not None), default=state.started)


def with_floor(state: PipelineState, shards: Mapping[str, ShardState], now: float) -> tuple[Floor, ...]:
    """The state's floors and a new one, if that is due. Those that are close to others, for their age, are left out.

    No record, scan or look-up of before ``now`` shows anything newer, and records to come have higher ordinals than
    their shards'. The newest record does not tell as much: the stream may lag behind what was scanned or looked up.
    """
    newest = max((s.created for s in shards.values() if s.created is not None), default=None)
    if newest is None or (state.floors and newest < state.floors[0].at + APART):
        return state.floors
    last = {id for id, shard in shards.items() if not shard.ended} | lineage.childless(shards)
    if not last:
        return state.floors
    ordinal = min(stages.start(shards[id], shards).ordinal for id in last)
    return thinned((Floor(max(now, newest), version(state.epoch, ordinal)), *state.floors))


def thinned(floors: Sequence[Floor]) -> tuple[Floor, ...]:
    """Floors, newest first, without those between two others that are less apart than half their age."""
    kept = list(floors)
    at = 1
    while at < len(kept) - 1:
        age = kept[0].at - kept[at + 1].at
        if kept[at - 1].at - kept[at + 1].at <= age / 2:
            del kept[at]
        else:
            at += 1
    return tuple(kept)


def above(state: PipelineState, since: float, *, inserting: bool) -> int:
    """A version that no document has, nor a lower one, that shows something written to the source after ``since``.

    ``inserting``: a command may be inserting documents at the scan's version right now.
    """
    before = since - CLOCKS
    if not inserting and (state.inserted is None or state.inserted < before):
        floors = list(state.floors)
        if state.scan_ended is not None:
            floors.append(Floor(state.scan_ended, version(state.epoch, 0)))
        versions = [floor.version for floor in floors if floor.at <= before]
        if versions:
            return max(versions)
    return version(state.complete, 0) - 1


def windows(since: float, until: float) -> tuple[tuple[float, float], ...]:
    """Of the exports that have everything between these times and for ``OVERLAP`` beyond; newest first."""
    first = (since - OVERLAP) // MINUTE * MINUTE
    end = -((-until - OVERLAP) // MINUTE) * MINUTE
    found = []
    while end > first:
        start = max(end - LONGEST, min(first, end - SHORTEST))
        found.append((start, end))
        end = start
    return tuple(found)


def planned(state: PipelineState, since: float, until: float, *, inserting: bool) -> GapRepair:
    """The repair of what was lost between these times. One that a later gap interrupts begins where it did before."""
    earlier = state.repair
    if earlier is not None and not earlier.done:
        since = min(since, earlier.since)
    every = windows(since, until)
    lowest = above(state, every[-1][0], inserting=inserting)
    if earlier is not None and not earlier.done:
        lowest = min(lowest, earlier.above)
    return GapRepair(since, lowest, every)
