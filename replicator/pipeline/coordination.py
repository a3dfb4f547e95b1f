"""What a coordinator of several workers decides, from what is stored. Pure functions.

It alone lists shards, gives them to slots, and changes epochs and stages. It keeps nothing that is not in the
checkpoints, so that another one can go on from there. Each slot has one worker at a time; what starts workers again
when they end is the engine's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from replicator.pipeline import stages
from replicator.pipeline.lineage import readable
from replicator.state import (
    LONGEST_IN_DOUBT,
    Entry,
    Owner,
    PipelineState,
    Save,
    SegmentState,
    ShardState,
    Slot,
    decode,
    encode,
)

COORDINATOR = "coordinator"  # the slot that the coordinator itself claims
UNCLAIMED = Slot(0, "")  # of a slot whose worker has not stored anything
Decision = Callable[[PipelineState, Mapping[str, Slot], Mapping[str, float]], bool]


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a run, by their ``slots``, and the ``coordinator`` that takes these away."""

    slots: tuple[str, ...]
    coordinator: Owner


@dataclass(frozen=True, slots=True)
class Given:
    """A shard for a slot. ``window``: seconds for which its worker must keep its in-doubt window open from now on."""

    state: ShardState
    window: float = 0.0


def loads(shards: Mapping[str, ShardState], segments: Mapping[str, SegmentState], slots: Iterable[str]) -> Counter[str]:
    """How many unended shards and segments each slot has."""
    load = Counter(dict.fromkeys(slots, 0))
    load.update(s.slot for s in shards.values() if not s.ended and s.slot in load)
    load.update(s.slot for s in segments.values() if not s.ended and s.slot in load)
    return load


def give_shards(
    shards: Mapping[str, ShardState], segments: Mapping[str, SegmentState], slots: Mapping[str, Slot]
) -> dict[str, Given]:
    """Shards that may be read and that no slot has, each for the slot with the least to do.

    ``shards``: as stored, so that the end of a parent is durable. The ordinals go on from there, and any slot may take
    the child. Where writes may be applied late, those of the parent's last batches may still come: then the child's
    deletes must leave tombstones for as long, as if its own worker had sent them.
    """
    load, given = loads(shards, segments, slots), {}
    for id in sorted(id for id in readable(shards) if shards[id].slot not in slots):
        slot = _least(load)
        load[slot] += 1
        state = replace(stages.start(shards[id], shards), slot=slot)
        given[id] = Given(state, inherited_window(state, shards, slots))
    return given


def give_segments(
    shards: Mapping[str, ShardState], segments: Mapping[str, SegmentState], slots: Iterable[str]
) -> dict[str, SegmentState]:
    """Segments left to scan that no slot has, each for the slot with the least to do."""
    slots = list(slots)
    load, given = loads(shards, segments, slots), {}
    for id in sorted(id for id, segment in segments.items() if not segment.ended and segment.slot not in slots):
        slot = _least(load)
        load[slot] += 1
        given[id] = replace(segments[id], slot=slot)
    return given


def _least(load: Counter[str]) -> str:
    return min(load, key=lambda slot: (load[slot], slot))


def inherited_window(child: ShardState, shards: Mapping[str, ShardState], slots: Mapping[str, Slot]) -> float:
    """For how many seconds writes of the parent's worker may still be applied, if that is another one."""
    parent = shards.get(child.parent) if child.parent is not None else None
    if parent is None or parent.slot == child.slot:
        return 0.0
    if not parent.slot:
        return 0.0  # a run in one process ended it; where that was killed, the workers began with a window
    return slots[parent.slot].in_doubt if parent.slot in slots else LONGEST_IN_DOUBT


def has_given(slots: Mapping[str, Slot], run: int) -> bool:
    """Whether a coordinator of the run with this revision has given everything to slots, and renewed these.

    Before that they are those of an earlier run, and do not say what runs in one process have in doubt since.
    """
    noted = slots.get(COORDINATOR)
    return noted is not None and noted.begun == run


@dataclass(frozen=True, slots=True)
class Claimant:
    """A worker that claims ``slot``. ``run``: its ``Owner.run``. ``retried``: notes of retries by now.

    ``lingers``: for how many seconds its writes under an earlier claim are in doubt; NaN if that is unknown.
    """

    slot: str
    run: str
    lingers: float | None
    retried: int


def window_of_claim(claimant: Claimant, pipeline: PipelineState, slots: Mapping[str, Slot]) -> float:
    """For how many seconds the deletes of a worker that claims its slot must leave tombstones.

    That is as long as writes may still be applied of itself, of the slot's last worker if that was another one, of
    commands and, once the scan is over, of any other worker, which may have scanned the deleted item. Before that, all
    deletes leave tombstones. The scan is over only when such writes are answered or stored as in doubt, and every
    worker claims its slot after that, so what is stored is enough.
    """
    slot = slots.get(claimant.slot)
    if slot is None or slot.retried != claimant.retried:
        return LONGEST_IN_DOUBT
    found = [] if stages.remembers_deletes(pipeline) else _in_doubt_elsewhere(claimant.slot, pipeline, slots)
    if math.isnan(claimant.lingers or 0.0) or slot.worker != claimant.run:
        return max([slot.lingers or 0.0, *found])
    return max([claimant.lingers or 0.0, *found])


def _in_doubt_elsewhere(claimed: str, pipeline: PipelineState, slots: Mapping[str, Slot]) -> list[float]:
    others = [slot for id, slot in slots.items() if id not in (claimed, COORDINATOR)]
    return [left_in_doubt(slot, pipeline) for slot in others]


def left_in_doubt(slot: Slot, pipeline: PipelineState) -> float:
    """Of a slot that was taken away in an earlier epoch, and has had no worker since, nothing newer is known."""
    if slot.epoch == 0:  # its worker has not begun in this run
        return slot.lingers or 0.0
    return slot.in_doubt if slot.epoch == pipeline.epoch else LONGEST_IN_DOUBT


def writers(entries: Iterable[Entry]) -> frozenset[str]:
    """Whose heartbeats say what the run does: "" of a run in one process, or of a coordinator, which purges; besides,
    the slots whose workers may write by now.

    A worker of another slot knows everything that is stored now before it gets anything to write.
    """
    entries = list(entries)
    if slots_of(entries) is None:
        return frozenset([""])
    states = (decode(e.kind, e.id, e.text) for e in entries if e.kind in ("shard", "segment"))
    slots = (s.slot for s in states if isinstance(s, ShardState | SegmentState) and s.slot and not s.ended)
    return frozenset(["", *slots])


def slots_of(entries: Sequence[Entry]) -> Mapping[str, Slot] | None:
    """The slots of the run's workers; None if it is one process."""
    found = {e.id: decode("slot", e.id, e.text) for e in entries if e.kind == "slot"}
    slots = {id: slot for id, slot in found.items() if isinstance(slot, Slot)}
    owner = next((e for e in entries if (e.kind, e.id) == ("owner", "")), None)
    if owner is None or not has_given(slots, owner.revision):
        return None
    return {id: slot for id, slot in slots.items() if id != COORDINATOR}


def taking_away(slots: Iterable[str], coordinator: Owner) -> list[Save]:
    """The saves that take slots from their workers. A new epoch or stage goes with those of all slots, in one save."""
    unowned = replace(coordinator, run="")
    return [Save("owner", slot, None, encode(unowned)) for slot in sorted(slots)]


def next_stage(pipeline: PipelineState, segments: Iterable[SegmentState], now: float) -> PipelineState | None:
    """The stage after the scan once all slots' segments are stored to their ends; None before."""
    return stages.next_stage(pipeline, segments, now)


def may_sweep(pipeline: PipelineState, slots: Mapping[str, Slot], vacant: Mapping[str, float]) -> bool:
    """Whether the sweep may begin, or the purge if nothing may be applied late: every worker knows of this stage.

    A worker that is away is waited for, as long as what it sent before its slot was taken away may be applied.
    ``vacant``: for how many seconds slots have had no worker, as far as the coordinator has seen it itself.
    """
    return all(knows(slot, pipeline) or _outlasted(vacant.get(id)) for id, slot in slots.items())


def may_purge(pipeline: PipelineState, slots: Mapping[str, Slot], vacant: Mapping[str, float]) -> bool:
    """Whether tombstones may be purged that were listed before ``slots`` and ``vacant`` were read.

    Besides, no worker's writes are in doubt. One whose writes come to be in doubt later stores that before it leaves
    the tombstones that it needs for them: so these were not listed.
    """
    return all(not slot.in_doubt if knows(slot, pipeline) else _outlasted(vacant.get(id)) for id, slot in slots.items())


def knows(slot: Slot, pipeline: PipelineState) -> bool:
    """Whether the slot's worker has stored that it knows the pipeline's epoch and stage."""
    return (slot.epoch, slot.stage) == (pipeline.epoch, pipeline.stage)


def _outlasted(vacant: float | None) -> bool:
    """Whether the slot has had no worker for so long that nothing of the last one can still be applied."""
    return vacant is not None and vacant >= LONGEST_IN_DOUBT
