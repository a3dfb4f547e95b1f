"""A backfill for AWS Lambda while invocations list shards: each listing is a save of the pipeline's entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from replicator.engine.handover import Backfill
from replicator.engine.local import Driver
from replicator.engine.startup import RESUMING, Allowed
from replicator.errors import GapFound
from replicator.pipeline import stages
from replicator.pipeline.lanes import CLOCKS
from replicator.state import LONGEST_IN_DOUBT, decode, encode
from tests.engine.function_stack import Stack
from tests.engine.test_function_late_writes import Mirror


@pytest.fixture
def stack() -> Mirror:
    found = Mirror(shards=1)
    found.write("k1", 1)
    found.backfill()
    found.deliver(found.container())
    found.settled()
    return found


def sweeping(stack: Mirror) -> Backfill:
    stack.delete("k1")
    stack.write("k3", 3)
    run = stack.begun(Allowed(resync=True))
    while run.coordinator._state().stage != stages.SWEEPING:
        run.step()
        stack.clock.now += 1.0
    run.coordinator._refresh()
    return run


def listed(stack: Stack, times: int) -> None:
    for _ in range(times):
        stack.until_over()
        stack.container()._add_new()


def gaps(stack: Stack) -> Sequence[str]:
    return [entry.text for entry in stack.context().checkpoints.read().entries if entry.kind == "gap"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_gap_that_a_backfill_finds_is_recorded(stack: Mirror, times: int) -> None:
    run = sweeping(stack)
    listed(stack, times)
    with pytest.raises(GapFound, match="records are lost"):
        loses(run, stack)
    assert len(gaps(stack)) == 1


def loses(run: Backfill, stack: Mirror) -> None:
    run.coordinator._gap(GapFound("records are lost", "shard-x"))
    for _ in range(5):  # what others have stored meanwhile is looked at first
        stack.clock.now += 1.0
        run.step()


@pytest.mark.parametrize("times", [1, 2])
def test_a_gap_that_shows_as_a_backfill_is_stopped_is_recorded(
    stack: Mirror, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sweeping(stack)
    delivery, calls = run.coordinator._delivery, list[int]()
    settle = delivery.settle

    def settled() -> None:
        calls.append(1)
        settle()
        if len(calls) == 2:
            listed(stack, times)
            raise GapFound("the table is gone")

    monkeypatch.setattr(delivery, "settle", settled)
    with pytest.raises(GapFound, match="the table is gone"):
        run.end()
    assert len(gaps(stack)) == 1


def test_a_backfill_with_something_left_to_store_is_stopped_in_good_order(stack: Mirror) -> None:
    run = sweeping(stack)
    run.coordinator.pipeline.give(dict(run.coordinator.pipeline.shards), {})
    listed(stack, 2)
    run.end()
    state = run.coordinator.pipeline.state
    assert state is not None
    assert state.lingers is not None


def test_what_lanes_left_before_a_backfill_is_purged_by_another_engine_after_it(stack: Mirror) -> None:
    for kind, id in (("slot", "backfill"), ("pipeline", "")):  # as if nothing was in doubt when those last stored it
        revision, text = stack.database.entries[kind, id]
        stack.database.entries[kind, id] = revision, encode(replace(decode(kind, id, text), lingers=None))  # type: ignore[type-var]
    stack.leave_tombstone()
    stack.late.clear()
    stack.clock.now += LONGEST_IN_DOUBT + 2 * CLOCKS
    stack.write("k1", 3)
    stack.deliver(stack.container())
    assert ("k2",) in stack.tombstones
    stack.backfill()
    stack._until = stack.clock.now + 3600.0
    driver = Driver(stack.context(), stack.owner("local"), stack.environment())
    driver.start(RESUMING)
    for _ in range(1000):
        driver._guarded_turn()
        stack.clock.now += 1.0
    driver._shut_down()
    driver._steps.close()
    assert stack.tombstones == {}
