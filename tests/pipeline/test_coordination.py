"""What a coordinator decides from what is stored: who reads a shard, and when a stage is over for every worker."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from replicator.pipeline import coordination, stages
from replicator.pipeline.coordination import Claimant
from replicator.state import (
    LONGEST_IN_DOUBT,
    Entry,
    Owner,
    PipelineState,
    SegmentState,
    ShardState,
    Slot,
    encode,
)
from replicator.version import FIRST_EPOCH

NOW = 1_700_000_000.0
PIPELINE = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.PURGING, resync=True)
KNOWS = Slot(FIRST_EPOCH, stages.PURGING)
IDLE: Mapping[str, Slot] = {"0": KNOWS, "1": KNOWS}
OPEN = ShardState(None, None, whole=True, since=NOW)


def test_shards_go_to_the_slot_with_the_least_to_do() -> None:
    shards = {f"s{n}": OPEN for n in range(4)} | {"mine": replace(OPEN, slot="0")}
    given = coordination.give_shards(shards, {"0": SegmentState(1, slot="0")}, IDLE)
    assert {id: one.state.slot for id, one in given.items()} == {"s0": "1", "s1": "1", "s2": "0", "s3": "1"}


def test_what_has_ended_is_no_load() -> None:
    shards = {"done": replace(OPEN, slot="0", ended=True), "open": replace(OPEN, slot="1"), "new": OPEN}
    ended = {"0": SegmentState(1, slot="0", ended=True)}
    assert coordination.give_shards(shards, ended, IDLE)["new"].state.slot == "0"


def test_a_child_is_given_once_its_parents_end_is_stored_and_goes_on_from_its_last_ordinal() -> None:
    parent = replace(OPEN, slot="0", sequence="9", ordinal=7, created=NOW + 5)
    shards = {"p": parent, "c": ShardState("p", "10", whole=True, since=NOW)}
    assert coordination.give_shards(shards, {}, IDLE) == {}
    (given,) = coordination.give_shards(shards | {"p": replace(parent, ended=True)}, {}, IDLE).values()
    assert (given.state.ordinal, given.state.since) == (7, NOW + 5)


@pytest.mark.parametrize(
    ("of_parent", "window"),
    [(replace(KNOWS, in_doubt=200.0), 200.0), (KNOWS, 0.0), (None, LONGEST_IN_DOUBT)],
    ids=["in doubt", "no doubt", "unknown"],
)
def test_a_child_in_another_slot_inherits_what_is_in_doubt_of_its_parent(of_parent: Slot | None, window: float) -> None:
    """Else its deletes would leave no tombstones, and a late request of the parent's worker would undo one."""
    shards = {"p": replace(OPEN, slot="0", ended=True), "c": ShardState("p", "10", whole=True, since=NOW)}
    slots = {"1": KNOWS} | ({} if of_parent is None else {"0": of_parent})
    busy = {str(n): SegmentState(9, slot="0") for n in range(2)}
    given = coordination.give_shards(shards, busy, slots)["c"]
    assert (given.state.slot, given.window) == ("1", window)


def test_a_child_in_its_parents_slot_inherits_nothing() -> None:
    """The worker knows itself what it has sent."""
    shards = {"p": replace(OPEN, slot="0", ended=True), "c": ShardState("p", "10", whole=True, since=NOW)}
    assert coordination.give_shards(shards, {}, {"0": replace(KNOWS, in_doubt=200.0)})["c"].window == 0.0


MINE = replace(KNOWS, worker="me")
ME = Claimant("0", "me", lingers=None, retried=0)


@pytest.mark.parametrize(
    ("me", "mine", "other", "stage", "window"),
    [
        (ME, MINE, KNOWS, stages.PURGING, 0.0),
        (ME, MINE, replace(KNOWS, in_doubt=200.0), stages.PURGING, 200.0),
        (ME, MINE, replace(KNOWS, in_doubt=200.0), stages.FOLLOWING, 200.0),
        (ME, MINE, replace(KNOWS, in_doubt=200.0), stages.SCANNING, 0.0),
        (ME, MINE, replace(KNOWS, epoch=FIRST_EPOCH - 1), stages.PURGING, LONGEST_IN_DOUBT),
        (ME, MINE, Slot(0, "", lingers=90.0), stages.PURGING, 90.0),
        (replace(ME, lingers=50.0), MINE, KNOWS, stages.PURGING, 50.0),
        (replace(ME, lingers=math.nan), MINE, KNOWS, stages.PURGING, LONGEST_IN_DOUBT),
        (ME, replace(MINE, worker="another"), KNOWS, stages.PURGING, LONGEST_IN_DOUBT),
        (ME, replace(MINE, worker="another", lingers=20.0), KNOWS, stages.PURGING, 20.0),
        (ME, Slot(0, "", lingers=None), KNOWS, stages.PURGING, 0.0),
        (replace(ME, retried=1), MINE, KNOWS, stages.PURGING, LONGEST_IN_DOUBT),
        (ME, None, KNOWS, stages.PURGING, LONGEST_IN_DOUBT),
    ],
    ids=[
        "nothing is in doubt",
        "another worker, which may have scanned",
        "still after the purge",
        "during the scan all deletes leave tombstones",
        "another worker that was away for a whole scan",
        "another worker that has not begun in this run",
        "it has sent something itself",
        "it does not know what it has sent",
        "another worker had the slot meanwhile, and was killed",
        "another worker had the slot meanwhile, and said how long",
        "the first worker of a run after one in good order",
        "a command has retried a change",
        "the slot is unknown",
    ],
)
def test_a_worker_that_claims_its_slot_leaves_tombstones_while_older_writes_may_be_applied(
    me: Claimant, mine: Slot | None, other: Slot, stage: str, window: float
) -> None:
    slots = {"1": other, coordination.COORDINATOR: Slot(0, "")} | ({} if mine is None else {"0": mine})
    assert coordination.window_of_claim(me, replace(PIPELINE, stage=stage), slots) == window


def test_segments_are_spread_over_the_slots_and_stay_where_they_are() -> None:
    segments = {str(n): SegmentState(6) for n in range(5)} | {
        "5": SegmentState(6, slot="1"),
        "6": SegmentState(6, ended=True),
    }
    given = coordination.give_segments({}, segments, IDLE)
    assert sorted(given) == ["0", "1", "2", "3", "4"]
    assert Counter(s.slot for s in given.values()) == {"0": 3, "1": 2}


def test_who_writes_is_the_run_in_one_process_or_the_coordinator_and_slots_that_have_something_left_to_read() -> None:
    """Shards keep the slots of an earlier run. A coordinator purges."""
    entries = [
        Entry("shard", "p", 3, encode(replace(OPEN, slot="0", ended=True))),
        Entry("shard", "c", 3, encode(replace(OPEN, slot="1"))),
        Entry("shard", "d", 3, encode(OPEN)),
        Entry("segment", "0", 1, encode(SegmentState(1, slot="2"))),
        Entry("owner", "", 7, encode(Owner("run", "here", 1, NOW))),
    ]
    assert coordination.writers(entries) == {""}
    noted = Entry("slot", coordination.COORDINATOR, 1, encode(Slot(0, "", lingers=None, begun=7)))
    assert coordination.writers([*entries, noted]) == {"", "1", "2"}
    assert coordination.writers([*entries, replace_revision(noted, 6)]) == {""}, "of an earlier run"


def replace_revision(noted: Entry, run: int) -> Entry:
    return Entry("slot", noted.id, noted.revision, encode(Slot(0, "", lingers=None, begun=run)))


def test_the_scan_is_over_when_the_segments_of_all_slots_are_stored() -> None:
    scanning = replace(PIPELINE, stage=stages.SCANNING)
    segments = [SegmentState(2, slot="0", ended=True), SegmentState(2, slot="1")]
    assert coordination.next_stage(scanning, segments, NOW) is None
    after = coordination.next_stage(scanning, [replace(s, ended=True) for s in segments], NOW)
    assert after is not None
    assert after.stage == stages.SWEEPING


def test_a_sweep_waits_until_every_worker_knows_of_it() -> None:
    """One that is partitioned away may believe that the scan goes on, or that no tombstones are needed."""
    earlier = replace(KNOWS, stage=stages.SWEEPING)
    for behind in (earlier, replace(KNOWS, epoch=FIRST_EPOCH - 1)):
        slots = {"0": KNOWS, "1": behind}
        assert not coordination.may_sweep(PIPELINE, slots, {})
        assert not coordination.may_purge(PIPELINE, slots, {})
    assert coordination.may_sweep(PIPELINE, IDLE, {})


def test_a_slot_without_a_worker_is_waited_for_until_nothing_of_the_last_one_can_be_applied() -> None:
    slots = {"0": KNOWS, "1": replace(KNOWS, stage=stages.SCANNING)}
    for may in (coordination.may_sweep, coordination.may_purge):
        assert not may(PIPELINE, slots, {})
        assert not may(PIPELINE, slots, {"1": LONGEST_IN_DOUBT - 1})
        assert may(PIPELINE, slots, {"1": LONGEST_IN_DOUBT})


def test_a_purge_waits_for_the_in_doubt_window_of_every_worker() -> None:
    slots = {"0": KNOWS, "1": replace(KNOWS, in_doubt=10.0)}
    assert coordination.may_sweep(PIPELINE, slots, {})
    assert not coordination.may_purge(PIPELINE, slots, {})
    assert coordination.may_purge(PIPELINE, IDLE, {})
