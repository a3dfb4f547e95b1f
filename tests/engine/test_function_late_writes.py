"""The function on AWS Lambda before a target without transactions: requests without a response may be applied later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from replicator.batch import Batch, Outcome
from replicator.checkpoints.contract import Slotted
from replicator.engine.function import Function
from replicator.engine.function_cleanup import PURGE_PAUSE, note_owed_purge
from replicator.engine.handover import LONGEST_INVOCATION, Backfill
from replicator.engine.local import Driver
from replicator.engine.retry import Stopped
from replicator.engine.startup import RESUMING, Allowed
from replicator.errors import ConfigError, TransientError
from replicator.pipeline import coordination, lanes, stages
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.lanes import CLOCKS, Standing, in_doubt_until, may_purge, owes_purge, window_of
from replicator.pipeline.parked import REPAIR, RETRIED
from replicator.pipeline.progress import progress
from replicator.state import LONGEST_IN_DOUBT, PipelineState, Repair, Retried, Save, ShardState, Slot, decode, encode
from replicator.target.acks import place
from replicator.testing.memory_index import MemoryIndex
from tests.engine.cluster import TABLE
from tests.engine.function_stack import Stack, Timer


class Killed(BaseException):
    """The container ended in the middle of a batch."""


class LosingIndex(MemoryIndex):
    """``lose``: what to do instead of the next writes, with the requests that carry them out."""

    lose: Callable[[Sequence[Callable[[], object]]], None] | None = None

    def write(self, batch: Batch) -> Outcome:
        if LosingIndex.lose is None:
            return super().write(batch)
        requests = self.requests(batch)
        LosingIndex.lose([partial(self.carry_out, request) for request in requests])
        self.acknowledged.lost |= {place(request.write) for request in requests}
        self.in_doubt.begin()
        raise TransientError("some responses were lost")


class Mirror(Stack):
    """``late``: requests that were not answered."""

    def __init__(self, **config: Any) -> None:
        super().__init__(index=True, **config)
        self.index_type = LosingIndex
        self.late: list[Callable[[], object]] = []

    def lose(self, *, killed: bool = False) -> None:  # type: ignore[override]
        """The next batch is sent, and not answered."""

        def lost(requests: Sequence[Callable[[], object]]) -> None:
            LosingIndex.lose = None
            self.late += requests
            if killed:
                raise Killed

        LosingIndex.lose = lost

    def killed_in_a_batch(self, function: Function) -> None:
        self.lose(killed=True)
        (shard,) = self.mapping.ready()
        batch = self.mapping.event(shard)
        assert batch is not None
        self.until_over()
        with pytest.raises(Killed):
            function.invoke(batch)

    def leave_tombstone(self) -> None:
        """An item is deleted whose write was not answered."""
        self.write("k2", 2)
        self.lose()
        self.deliver(self.container())
        self.delete("k2")
        self.deliver(self.container())

    def arrive(self) -> None:
        """What was not answered is applied."""
        while self.late:
            self.late.pop()()

    def scheduled(self, function: Function | None = None) -> None:
        self.until_over()
        (function or self.container()).invoke({})

    def settled(self) -> None:
        """An hour in which nothing is lost, after which no tombstone is left."""
        for _ in range(3):
            self.clock.now += PURGE_PAUSE
            self.scheduled()
        assert self.tombstones == {}

    @property
    def tombstones(self) -> dict[Any, Any]:
        return self.database.tombstones.get(TABLE, {})

    def begun(self, allowed: Allowed) -> Backfill:
        environment = replace(self.environment(), stop=Timer(self.clock))  # type: ignore[arg-type]
        run = Backfill(self.context(), self.owner("backfill"), environment, self._connected)
        run.start(allowed)
        return run


@pytest.fixture
def mirror() -> Mirror:
    stack = Mirror(shards=1)
    stack.write("k1", 1)
    stack.backfill()
    stack.deliver(stack.container())
    stack.settled()
    return stack


def test_a_write_that_is_applied_after_its_item_was_deleted_brings_nothing_back(mirror: Mirror) -> None:
    mirror.leave_tombstone()
    assert ("k2",) in mirror.tombstones
    mirror.scheduled()
    mirror.arrive()
    assert mirror.stored == mirror.wanted
    mirror.settled()


def test_what_a_killed_container_had_sent_brings_nothing_back(mirror: Mirror) -> None:
    mirror.write("k2", 2)
    mirror.killed_in_a_batch(mirror.container())
    mirror.clock.now += 5.0
    mirror.deliver(mirror.container())
    mirror.delete("k2")
    mirror.clock.now += 60.0
    mirror.deliver(mirror.container())
    mirror.clock.now += 90.0
    mirror.scheduled()
    mirror.arrive()
    assert mirror.stored == mirror.wanted
    mirror.settled()


def test_a_container_that_works_on_after_a_rest_counts_as_killed_if_it_is(mirror: Mirror) -> None:
    function = mirror.container()
    mirror.write("k1", 2)
    mirror.deliver(function)
    mirror.write("k2", 2)
    mirror.killed_in_a_batch(function)
    mirror.deliver(mirror.container())
    mirror.delete("k2")
    mirror.deliver(mirror.container())
    mirror.arrive()
    assert mirror.stored == mirror.wanted


def test_while_all_requests_are_answered_deletes_leave_no_tombstones_whichever_container_stores_them(
    mirror: Mirror,
) -> None:
    containers = [mirror.container() for _ in range(3)]
    for n in range(9):
        mirror.write(f"k{n}", n)
        mirror.deliver(containers[n % 3])
        mirror.delete(f"k{n}")
        mirror.deliver(containers[(n + 1) % 3])
        mirror.scheduled(containers[(n + 2) % 3])
    assert mirror.tombstones == {}


def test_a_window_ends_though_another_container_stores_each_batch(mirror: Mirror) -> None:
    mirror.write("k2", 2)
    mirror.lose()
    mirror.deliver(mirror.container())
    for n in range(int((LONGEST_IN_DOUBT + CLOCKS) / 20) + 2):
        mirror.clock.now += 20.0
        mirror.write("k1", n)
        mirror.deliver(mirror.container())
    mirror.delete("k1")
    mirror.deliver(mirror.container())
    assert mirror.tombstones == {}


def test_the_tombstones_of_a_killed_container_whose_shard_gets_no_record_are_purged(mirror: Mirror) -> None:
    mirror.write("k2", 2)
    mirror.lose()
    mirror.deliver(mirror.container())
    mirror.delete("k2")
    mirror.killed_in_a_batch(mirror.container())
    mirror.arrive()
    assert ("k2",) in mirror.tombstones
    mirror.settled()
    assert mirror.stored == mirror.wanted


def test_the_tombstones_of_a_lane_whose_shards_have_ended_are_purged() -> None:
    mirror = Mirror(shards=2)
    mirror.backfill()
    mirror.write("k1", 1)
    mirror.deliver(mirror.container())
    lane = mirror.context().checkpoints
    assert isinstance(lane, Slotted)
    view = CheckpointView(lane.read())
    free = replace(view.slots["lambda-0"], in_doubt=LONGEST_IN_DOUBT, until=None)
    mirror.database.entries["slot", "lambda-7"] = (1, encode(free))
    mirror.settled()
    assert CheckpointView(lane.read()).slots["lambda-7"].until is not None


def test_tombstones_stay_while_a_late_request_needs_them_and_until_then_each_schedule_looks_again(
    mirror: Mirror,
) -> None:
    mirror.leave_tombstone()
    for _ in range(6):
        mirror.clock.now += 60.0
        mirror.scheduled()
        assert ("k2",) in mirror.tombstones
    mirror.clock.now += CLOCKS + 60.0
    mirror.scheduled()
    assert mirror.tombstones == {}


def test_what_was_listed_stays_if_a_lane_comes_to_need_it_before_it_is_removed(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.leave_tombstone()
    mirror.clock.now += PURGE_PAUSE
    purge, calls = LosingIndex.purge, []

    def purging(*given: Any, **named: Any) -> int:
        calls.append(purge(*given, **named))
        revision, text = mirror.database.entries["slot", "lambda-0"]
        doubtful = replace(decoded(text), until=None, in_doubt=LONGEST_IN_DOUBT)
        mirror.database.entries["slot", "lambda-0"] = revision + 1, encode(doubtful)
        return calls[-1]

    monkeypatch.setattr(LosingIndex, "purge", purging)
    mirror.scheduled()
    assert calls == [1]
    assert ("k2",) in mirror.tombstones


def decoded(text: str) -> Slot:
    found = decode("slot", "", text)
    assert isinstance(found, Slot)
    return found


def test_after_a_command_retried_something_deletes_leave_tombstones(mirror: Mirror) -> None:
    mirror.write("k2", 2)
    function = mirror.container()
    mirror.deliver(function)
    mirror.context().checkpoints.save([Save(RETRIED, "1024", 0, encode(Retried(5)))])
    mirror.delete("k2")
    mirror.deliver(function)
    assert ("k2",) in mirror.tombstones
    mirror.settled()


def test_a_rescan_waits_for_requests_of_the_epoch_before_and_sweeps_what_they_brought_back(mirror: Mirror) -> None:
    mirror.write("k2", 2)
    mirror.killed_in_a_batch(mirror.container())
    mirror.delete("k2")
    mirror.source.roll_all(TABLE)
    run = mirror.begun(Allowed(resync=True))
    began = mirror.clock.now
    while not run.coordinator.is_backfilled:
        run.step()
        mirror.clock.now += 1.0
        if mirror.clock.now - began < 60.0:
            mirror.write("k1", round(mirror.clock.now))  # so that its lane says that it knows the stage
            mirror.deliver(mirror.container())
        elif mirror.late:
            mirror.arrive()
            assert ("k2",) in mirror.stored, "the first sweep is over"
    run.end()
    run.close()
    mirror.arrive()
    assert mirror.stored == mirror.wanted
    mirror.settled()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_backfill_that_ended_before_its_second_sweep_is_told_by_each_schedule(
    mirror: Mirror, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What came back behind the first one stays until then."""
    mirror.write("k2", 2)
    mirror.killed_in_a_batch(mirror.container())
    mirror.delete("k2")
    mirror.source.roll_all(TABLE)
    run = mirror.begun(Allowed(resync=True))
    caplog.set_level("INFO")
    while not run.coordinator._is_following:
        run.step()
        mirror.clock.now += 1.0
        if mirror.clock.now % 20.0 < 1.0:
            mirror.write("k1", round(mirror.clock.now))
            mirror.deliver(mirror.container())
    run.step()
    assert not run.coordinator.is_backfilled
    assert "If this run ends before that, run it again" in str([record.__dict__ for record in caplog.records])
    if how == "stopped":
        run.end()
    run.close()
    mirror.arrive()
    assert ("k2",) in mirror.stored
    mirror.clock.now += PURGE_PAUSE
    with pytest.raises(ConfigError, match=r"a backfill has begun and not ended.*--until backfilled"):
        mirror.scheduled()
    assert "brought back" in (waits_for(mirror) or "")
    again = mirror.begun(Allowed())
    while not again.coordinator.is_backfilled:
        again.step()
        mirror.clock.now += 1.0
    refresh = again.coordinator._refresh

    def refreshed() -> None:
        """A schedule's invocation lists shards while the run ends."""
        refresh()
        again.coordinator._refresh = refresh  # type: ignore[method-assign]
        mirror.scheduled()

    again.coordinator._refresh = refreshed  # type: ignore[method-assign]
    again.end()
    again.close()
    assert mirror.stored == mirror.wanted
    assert waits_for(mirror) is None
    mirror.settled()


def test_a_lane_whose_invocation_was_killed_before_it_stored_anything_holds_up_no_sweep(
    mirror: Mirror,
) -> None:
    """Nothing invokes the function any more: the mapping and the schedule are disabled."""
    mirror.delete("k1")
    mirror.write("k3", 3)
    run = mirror.begun(Allowed(resync=True))
    claimed = False
    began = mirror.clock.now
    while not run.coordinator.is_backfilled:
        run.step()
        mirror.clock.now += 1.0
        assert mirror.clock.now - began < 2 * LONGEST_INVOCATION + 4 * LONGEST_IN_DOUBT, "it waits for the lane"
        if run.coordinator._state().stage == stages.SWEEPING and not claimed:
            store = mirror.context().checkpoints
            assert isinstance(store, Slotted)
            store.claim_slot(mirror.owner("killed"), "lambda-0", run.coordinator.revision)
            claimed = True
    assert claimed
    run.end()
    run.close()


def waits_for(mirror: Mirror) -> str | None:
    mirror.write("k1", round(mirror.clock.now))
    mirror.deliver(mirror.container())
    claimed = mirror.context().checkpoints.read()
    return progress(claimed.entries, claimed.counts, mirror.clock.wall()).waiting_for


def test_a_schedule_has_done_its_work_though_the_store_does_not_say_in_time_whether_a_backfill_is_owed(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unanswered(self: Function, now: float) -> None:
        raise Stopped

    monkeypatch.setattr(Function, "_check_backfill", unanswered)
    mirror.scheduled()


def losing_the_note(mirror: Mirror, function: Function) -> None:
    """The store saves that the lane of the container rests, and does not answer until the invocation's time is over."""
    store = function._context.checkpoints
    save = store.save

    def losing(saves: Sequence[Save], *counts: Any) -> None:
        save(saves, *counts)
        if any(s.kind == "slot" and s.text and decoded(s.text).until is not None for s in saves):
            store.save = save  # type: ignore[method-assign]
            mirror.until_over()
            mirror.clock.now = mirror._until + 0.1
            raise TransientError("the response was lost")

    store.save = losing  # type: ignore[assignment, method-assign]


def test_a_container_that_did_not_hear_that_its_lane_rests_claims_it_before_it_writes(mirror: Mirror) -> None:
    function = mirror.container()
    mirror.write("k1", 2)
    mirror.deliver(function)
    losing_the_note(mirror, function)
    mirror.write("k1", 3)
    mirror.deliver(function)
    mirror.write("k2", 2)
    mirror.killed_in_a_batch(function)
    mirror.deliver(mirror.container())
    mirror.delete("k2")
    mirror.deliver(mirror.container())
    mirror.clock.now += 100.0
    mirror.arrive()
    assert mirror.stored == mirror.wanted
    losing_the_note(mirror, function)
    mirror.write("k1", 4)
    mirror.deliver(function)
    mirror.write("k2", 3)
    mirror.deliver(function)
    assert mirror.stored == mirror.wanted


def test_tombstones_that_a_container_leaves_after_a_purge_whose_clock_is_ahead_are_purged_later(mirror: Mirror) -> None:
    mirror.write("k2", 2)
    mirror.lose()
    mirror.deliver(mirror.container())
    lost = mirror.clock.now
    mirror.write("k3", 3)
    mirror.deliver(mirror.container())
    mirror.clock.now = lost + LONGEST_IN_DOUBT + 20.0
    ahead = replace(mirror.environment(), now=lambda: mirror.clock.wall() + CLOCKS - 10.0)
    mirror.scheduled(Function(mirror.context(), mirror.owner("container"), ahead))
    mirror.delete("k3")
    mirror.deliver(mirror.container())
    assert ("k3",) in mirror.tombstones
    mirror.late.clear()
    mirror.settled()


class Frozen:
    """A container whose monotonic clock stands still while Lambda does not run it."""

    def __init__(self, mirror: Mirror) -> None:
        self.awake = 0.0
        frozen = self

        class Stopping(LosingIndex):
            def __init__(self, database: Any, now: object) -> None:
                super().__init__(database, now=lambda: frozen.awake)

        mirror.index_type = Stopping  # type: ignore[assignment]
        self.function = mirror.container()
        mirror.index_type = LosingIndex
        mirror.write("k2", 2)
        mirror.lose()
        mirror.deliver(self.function)
        mirror.late.clear()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_window_ends_though_lambda_stops_the_clock_of_a_frozen_container(shards: int) -> None:
    """Also if it claims a lane each time, because it has several shards in turns."""
    mirror = Mirror(shards=shards)
    mirror.write("k1", 1)
    mirror.backfill()
    mirror.deliver(mirror.container())
    mirror.settled()
    frozen = Frozen(mirror)
    for n in range(30):
        mirror.clock.now += 50.0
        frozen.awake += 0.2
        for k in range(8):
            mirror.write(f"x{n}-{k}", n)
        mirror.deliver(frozen.function)
        for k in range(8):
            mirror.delete(f"x{n}-{k}")
        mirror.deliver(frozen.function)
    assert not [id for id in mirror.tombstones if id[0].startswith("x29")]
    mirror.settled()


def test_a_container_purges_though_its_clock_stood_still(mirror: Mirror) -> None:
    frozen = Frozen(mirror)
    mirror.delete("k2")
    mirror.deliver(frozen.function)
    assert ("k2",) in mirror.tombstones
    mirror.clock.now += PURGE_PAUSE
    mirror.write("k1", 2)
    mirror.deliver(mirror.container())
    mirror.scheduled(frozen.function)
    assert mirror.tombstones == {}


def test_a_purge_begins_anew_whatever_the_container_had_reached_an_hour_before(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    purge = LosingIndex.purge

    def purging(self: LosingIndex, *given: Any, **named: Any) -> int:
        begun.append(self.in_doubt.begun)
        return purge(self, *given, **named)

    monkeypatch.setattr(LosingIndex, "purge", purging)
    function = mirror.container()
    for n in range(2):
        mirror.write("k2", n)
        mirror.lose()
        mirror.deliver(mirror.container())
        mirror.delete("k2")
        mirror.deliver(mirror.container())
        mirror.arrive()
        mirror.clock.now += PURGE_PAUSE
        mirror.scheduled(function)
    assert mirror.tombstones == {}
    assert len(set(begun)) == 2, "a number for each purge: targets begin anew where it has changed"


def test_nothing_is_purged_while_a_backfill_scans(mirror: Mirror) -> None:
    mirror.write("k2", 2)
    mirror.deliver(mirror.container())
    run = mirror.scanning(Allowed(resync=True))
    mirror.write("k1", 2)
    mirror.deliver(mirror.container())
    mirror.delete("k2")
    mirror.deliver(mirror.container())
    mirror.clock.now += 2 * LONGEST_IN_DOUBT
    mirror.write("k1", 3)
    mirror.deliver(mirror.container())
    assert run.is_scanning
    mirror.scheduled()
    assert ("k2",) in mirror.tombstones


def test_a_purge_that_a_lane_held_up_is_not_a_whole_one(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.leave_tombstone()
    mirror.arrive()
    mirror.clock.now += PURGE_PAUSE
    looks: list[float] = []

    def may(at: Standing, now: float) -> bool:
        looks.append(now)
        return len(looks) != 2 and may_purge(at, now)

    monkeypatch.setattr(lanes, "may_purge", may)
    mirror.scheduled()
    assert mirror.tombstones
    mirror.settled()


def test_another_engine_heeds_a_lane_that_rests_in_doubt(mirror: Mirror) -> None:
    """Also where neither the backfill's own slot nor the pipeline says that something is in doubt."""
    for kind, id in (("slot", "backfill"), ("pipeline", "")):
        revision, text = mirror.database.entries[kind, id]
        mirror.database.entries[kind, id] = revision, encode(replace(decode(kind, id, text), lingers=None))  # type: ignore[type-var]
    mirror.write("k2", 2)
    mirror.lose()
    mirror.deliver(mirror.container())
    mirror.clock.now += 30.0
    mirror.delete("k2")
    driver = Driver(mirror.context(), mirror.owner("local"), mirror.environment())
    mirror._until = mirror.clock.now + PURGE_PAUSE
    driver.start(RESUMING)
    for _ in range(150):
        driver._guarded_turn()
        mirror.clock.now += 1.0
    mirror.arrive()
    assert mirror.stored == mirror.wanted


def test_another_engine_purges_what_lanes_have_left_once(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule, which purges at most once an hour, had not come to it."""
    mirror.leave_tombstone()
    mirror.late.clear()
    mirror.clock.now += LONGEST_IN_DOUBT + 2 * CLOCKS
    mirror.write("k1", 3)
    mirror.deliver(mirror.container())
    assert ("k2",) in mirror.tombstones
    purges: list[int] = []
    purge = LosingIndex.purge

    def purging(*given: Any, **named: Any) -> int:
        purges.append(purge(*given, **named))
        return purges[-1]

    monkeypatch.setattr(LosingIndex, "purge", purging)
    for _ in range(2):
        mirror._until = mirror.clock.now + PURGE_PAUSE
        driver = Driver(mirror.context(), mirror.owner("local"), mirror.environment())
        driver.start(RESUMING)
        for _ in range(1000):
            driver._guarded_turn()
            mirror.clock.now += 1.0
        driver._shut_down()
        driver._steps.close()
        assert mirror.tombstones == {}
    assert purges == [1, 0], "the second run has nothing to purge"


def in_need_of_a_purge(mirror: Mirror) -> None:
    """And with no shard that the schedule would read."""
    mirror.leave_tombstone()
    mirror.late.clear()
    mirror.clock.now += PURGE_PAUSE
    mirror.write("k1", round(mirror.clock.now))
    mirror.deliver(mirror.container())
    assert ("k2",) in mirror.tombstones


def test_a_schedule_whose_time_is_over_in_a_purge_has_not_failed(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_need_of_a_purge(mirror)
    with monkeypatch.context() as patch:
        patch.setattr(LosingIndex, "purge", lambda *_, **__: raises(Stopped))
        mirror.scheduled()
    assert "raise the function's timeout" in str([record.__dict__ for record in caplog.records])
    mirror.settled()


def raises(kind: type[Exception]) -> int:
    raise kind


def test_a_purge_beside_a_sweep_that_leaves_tombstones_is_not_a_whole_one(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_need_of_a_purge(mirror)
    purge = LosingIndex.purge
    retrying, checkpoints = mirror.container()._retrying, mirror.context().checkpoints
    run = CheckpointView(checkpoints.read()).slots[coordination.COORDINATOR].begun

    def purging(self: LosingIndex, *given: Any, **named: Any) -> int:
        left = purge(self, *given, **named)
        if not left and ("swept",) not in mirror.tombstones:
            note_owed_purge(checkpoints, mirror.owner("sweeping"), run, retrying)
            mirror.tombstones["swept",] = 1
        return left

    with monkeypatch.context() as patch:
        patch.setattr(LosingIndex, "purge", purging)
        mirror.scheduled()
    assert list(mirror.tombstones) == [("swept",)]
    mirror.settled()


def test_a_purge_that_a_repair_holds_up_is_not_a_whole_one(mirror: Mirror) -> None:
    mirror.leave_tombstone()
    mirror.arrive()
    for n in (5, 6):
        mirror.clock.now += LONGEST_IN_DOUBT + 2 * CLOCKS
        mirror.write("k1", n)
        mirror.deliver(mirror.container())
    checkpoints = mirror.context().checkpoints
    checkpoints.save([Save(REPAIR, "", None, encode(Repair("token")))])
    mirror.scheduled()
    assert ("k2",) in mirror.tombstones
    checkpoints.save([Save(REPAIR, "", None, None)])
    mirror.settled()


def test_a_target_whose_documents_have_no_versions_is_refused() -> None:
    class Unguarded(MemoryIndex):
        unguarded = True

    stack = Stack(index=True)
    stack.index_type = Unguarded
    with pytest.raises(ConfigError, match=r"target.pristine: without versions in the items"):
        stack.container()


# Decisions

FOLLOWED = PipelineState(1024, "arn", "table", "id", stages.FOLLOWING)
RESTING = Slot(1024, stages.FOLLOWING, lingers=None, until=0.0)
NOW = 10_000.0


def at(retried: int = 0, **slots: Slot) -> Standing:
    """Of lanes ``l0``, ``l1`` and so on, and other slots by their names."""
    named = {f"lambda-{id[1:]}" if id[0] == "l" and id[1:].isdigit() else id: slot for id, slot in slots.items()}
    return Standing(FOLLOWED, {}, named, retried)


def test_what_a_lanes_last_container_noted_is_what_is_in_doubt() -> None:
    assert in_doubt_until("lambda-0", at(l0=RESTING), NOW) == 0.0
    assert in_doubt_until("lambda-0", at(l0=replace(RESTING, until=NOW + 7.0)), NOW) == NOW + 7.0
    for unknown in (at(), at(l0=replace(RESTING, until=None, lingers=LONGEST_IN_DOUBT)), at(1, l0=RESTING)):
        assert in_doubt_until("lambda-0", unknown, NOW) == NOW + LONGEST_IN_DOUBT


def test_a_child_heeds_its_parents_lane_until_it_has_begun() -> None:
    parent = replace(RESTING, until=NOW + 9.0)
    shards = {
        "p": ShardState(None, None, whole=True, since=0.0, ended=True, slot="lambda-1"),
        "c": ShardState("p", None, whole=True, since=0.0, slot="lambda-0"),
    }
    unbegun = replace(at(l0=RESTING, l1=parent), shards=shards)
    assert in_doubt_until("lambda-0", unbegun, NOW) == NOW + 9.0
    begun = replace(unbegun, shards={**shards, "c": replace(shards["c"], sequence="5")})
    assert in_doubt_until("lambda-0", begun, NOW) == 0.0


def test_after_a_scan_a_lane_heeds_all_that_scanned() -> None:
    renewed = Slot(0, "", lingers=None)
    scanned = Slot(1024, stages.SCANNING, in_doubt=200.0, until=None)
    assert in_doubt_until("lambda-0", at(l0=renewed, backfill=scanned), NOW) == NOW + 200.0
    coordinator = Slot(0, "", lingers=99.0)
    assert in_doubt_until("lambda-0", at(l0=RESTING, coordinator=coordinator, backfill=scanned), NOW) == 0.0


def test_a_window_outlasts_what_another_machines_clock_may_be_wrong() -> None:
    assert window_of(0.0, NOW) == 0.0
    assert window_of(NOW - CLOCKS + 1.0, NOW) == 1.0
    assert window_of(NOW - CLOCKS, NOW) <= 0.0
    assert window_of(NOW + 2 * LONGEST_IN_DOUBT, NOW) == LONGEST_IN_DOUBT


def test_tombstones_may_be_purged_once_every_lane_knows_that_nothing_is_in_doubt() -> None:
    assert may_purge(at(l0=RESTING, l1=replace(RESTING, until=None)), NOW)
    over = replace(RESTING, until=NOW - CLOCKS)
    assert may_purge(at(l0=over), NOW)
    for needed in (
        at(l0=replace(over, until=NOW - CLOCKS + 1.0)),
        at(l0=replace(RESTING, until=None, in_doubt=1.0)),
        at(l0=replace(RESTING, stage=stages.SCANNING)),
        at(l0=replace(RESTING, epoch=1023)),
        at(1, l0=RESTING),
    ):
        assert not may_purge(replace(needed, slots={**needed.slots, "lambda-9": RESTING}), NOW)


def test_a_purge_is_owed_after_each_window_and_after_a_scan() -> None:
    assert owes_purge(at(l0=RESTING), 0.0), "none has come to its end yet"
    assert not owes_purge(at(l0=RESTING), NOW)
    assert owes_purge(at(l0=RESTING, l1=replace(RESTING, until=NOW + 1.0)), NOW)
    assert owes_purge(at(l0=replace(RESTING, until=None, in_doubt=5.0)), NOW)
    after_scan = in_doubt_until("lambda-0", at(l0=Slot(1024, stages.SCANNING, lingers=None)), NOW)
    assert owes_purge(at(l0=replace(RESTING, until=after_scan)), NOW)


def test_lanes_without_a_shard_are_attended_to_if_they_hold_up_a_purge() -> None:
    shards = {"s": ShardState(None, None, whole=True, since=0.0, slot="lambda-0")}
    doubtful = replace(RESTING, until=None, in_doubt=5.0)
    found = replace(at(l0=doubtful, l1=doubtful, l2=RESTING, l3=Slot(0, ""), backfill=doubtful), shards=shards)
    assert lanes.unattended(found) == ["lambda-1", "lambda-3"]


def test_what_is_in_doubt_for_a_cutover_is_what_lanes_say_once_all_know_the_stage() -> None:
    scanned = Slot(1024, stages.SCANNING, in_doubt=360.0)
    known = at(l0=replace(RESTING, until=NOW), l1=RESTING, backfill=scanned).slots
    assert [lanes.left_of(slot, NOW) for slot in lanes.in_charge(known, FOLLOWED).values()] == [CLOCKS, 0.0]
    unknown = {**known, "lambda-1": coordination.UNCLAIMED}
    assert lanes.in_charge(unknown, FOLLOWED) == unknown
