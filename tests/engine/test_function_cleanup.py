"""What nothing but a backfill cleaned up behind AWS Lambda, and what a schedule and ``status`` make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from replicator.batch import DocumentId
from replicator.engine.function_cleanup import PAUSE
from replicator.engine.handover import Backfill
from replicator.engine.local import Driver
from replicator.engine.startup import Allowed
from replicator.errors import ConfigError, GapFound, TransientError
from replicator.hooks.hook import Document, Hook, documents
from replicator.pipeline import stages
from replicator.pipeline.parked import REPAIR
from replicator.pipeline.progress import Progress, progress
from replicator.state import Gap, Repair, Save, encode
from replicator.target.contract import Table
from replicator.testing.memory import MemoryDatabase, MemoryTarget
from tests.engine.cluster import TABLE
from tests.engine.function_stack import Stack

REFUSED = 99
RESYNC = Allowed(resync=True)


@documents
def numbered(item: Any) -> list[Document]:
    """One document for the item's number, which is its id, and none for one that it refuses."""
    number = int(str(item["v"]))
    if number == REFUSED:
        raise ValueError("refused")
    return [Document(f"d{number}", {"v": number})]


def with_spared_document() -> Stack:
    """A rescan has found k1 with what the hook refuses, so its document of before a gap, d1, was spared."""
    stack = Stack(shards=1, hook=Hook("numbered", numbered, "f", declared=True))
    stack.write("k1", 1)
    stack.write("k2", 50)
    stack.backfill()
    stack.lose("k1", 2)
    stack.lose("k1", REFUSED)
    stack.write("k2", 51)
    stack.deliver(stack.container())
    stack.backfill(RESYNC)
    assert names(stack) == ["d1", "d51"]
    return stack


def names(stack: Stack) -> list[str]:
    return sorted(id[-1] for id in stack.stored)


def status(stack: Stack) -> Progress:
    claimed = stack.context().checkpoints.read()
    return progress(claimed.entries, claimed.counts, stack.clock.wall())


def scheduled(stack: Stack) -> None:
    stack.until_over()
    stack.container().invoke({"source": "aws.events"})


def test_what_a_sweep_spared_is_swept_by_the_schedule_once_the_item_is_no_longer_parked() -> None:
    stack = with_spared_document()
    scheduled(stack)
    assert names(stack) == ["d1", "d51"], "the item is parked: what it had stays"
    assert status(stack).waiting_for is None
    stack.write("k1", 3)
    stack.deliver(stack.container())
    assert names(stack) == ["d1", "d3", "d51"]
    waiting_for = status(stack).waiting_for
    assert waiting_for is not None
    assert "1 item(s)" in waiting_for
    assert "--until backfilled" in waiting_for
    scheduled(stack)
    assert names(stack) == ["d3", "d51"]
    assert status(stack).waiting_for is None
    assert not stack.database.tombstones[TABLE]
    assert not [id for kind, id in stack.database.entries if kind == "spared"]


def test_nothing_is_swept_while_the_copy_lacks_changes_that_only_a_rescan_brings() -> None:
    stack = with_spared_document()
    stack.write("k1", 3)
    stack.deliver(stack.container())
    stack.source.disable_stream(TABLE)
    with pytest.raises(GapFound, match="until a rescan"):
        scheduled(stack)
    assert names(stack) == ["d1", "d3", "d51"]


@pytest.mark.parametrize("first", [True, False])
def test_a_sweep_that_runs_out_of_time_goes_on_with_the_next_invocation_if_it_has_removed_something(
    first: bool,
) -> None:
    """Otherwise hours later: it would again have too little time."""
    stack = with_spared_document()
    stack.write("k1", 3)
    stack.deliver(stack.container())
    pieces = 0

    class Slow(MemoryTarget):
        """The time of an invocation is over in its second piece, or already in its first."""

        def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
            nonlocal pieces
            pieces += 1
            if pieces == 1 and first:
                return super().sweep(table, below, spare)
            stack.clock.now = stack._until
            raise TransientError("a statement was cancelled")

    stack.target_type = Slow
    scheduled(stack)
    assert names(stack) == (["d3", "d51"] if first else ["d1", "d3", "d51"])
    assert status(stack).waiting_for is not None
    stack.target_type = MemoryTarget
    stack.clock.now += 15 * 60
    scheduled(stack)
    assert (status(stack).waiting_for is None) == first
    stack.clock.now += PAUSE
    scheduled(stack)
    assert status(stack).waiting_for is None
    assert names(stack) == ["d3", "d51"]


def test_a_backfill_ends_when_what_a_sweep_spared_is_swept() -> None:
    stack = with_spared_document()
    stack.write("k1", 3)
    stack.deliver(stack.container())
    stack.backfill()
    assert names(stack) == ["d3", "d51"]


def test_an_item_that_is_parked_again_during_the_sweep_keeps_what_it_has() -> None:
    """Its newest change may still be retried, and the documents of before the gap belong to what that replaces."""
    stack = with_spared_document()
    stack.write("k1", 3)
    stack.deliver(stack.container())

    class Parking(MemoryTarget):
        """Another invocation parks the item while one looks for what to sweep."""

        def __init__(self, database: MemoryDatabase) -> None:
            super().__init__(database)

        def older(self, table: Table, below: int, spare: Sequence[DocumentId]) -> Sequence[DocumentId]:
            found = super().older(table, below, spare)
            if stack.target_type is Parking:
                stack.target_type = MemoryTarget
                stack.write("k1", REFUSED)
                stack.deliver(stack.container())
            return found

    stack.target_type = Parking  # type: ignore[assignment]
    scheduled(stack)
    assert stack.target_type is MemoryTarget
    assert "d3" in names(stack)
    stack.write("k1", 4)
    stack.deliver(stack.container())
    scheduled(stack)
    assert names(stack) == ["d4", "d51"]


@pytest.mark.parametrize("outer", ["scheduled", "backfill"])
def test_two_that_sweep_harm_nothing(monkeypatch: pytest.MonkeyPatch, outer: str) -> None:
    """Two invocations, or one beside a run that makes a backfill: neither ends the other."""
    stack = with_spared_document()
    stack.write("k1", 3)
    stack.deliver(stack.container())
    sweep = MemoryTarget.sweep
    nested = False

    def both(target: MemoryTarget, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        nonlocal nested
        if not nested:
            nested = True
            scheduled(stack)
        return sweep(target, table, below, spare)

    monkeypatch.setattr(MemoryTarget, "sweep", both)
    if outer == "backfill":
        stack._until = stack.clock.now + 1000
        run = Backfill(stack.context(), stack.owner("backfill"), stack.environment(), stack._connected)
        assert run.run(Allowed())
    else:
        scheduled(stack)
    assert nested
    assert names(stack) == ["d3", "d51"]
    assert status(stack).waiting_for is None


def test_a_backfill_waits_for_a_repair_whose_deletes_would_leave_tombstones_for_ever() -> None:
    stack = Stack(shards=1)
    stack.write("k1", 1)
    stack.until_over()
    Driver(stack.context(), stack.owner("local"), stack.environment()).run(until="caught-up")
    stack.context().checkpoints.save([Save(REPAIR, "", 0, encode(Repair("token")))])  # of a command that was killed
    stack._until = stack.clock.now + 2000
    run = Backfill(stack.context(), stack.owner("backfill"), stack.environment(), stack._connected)
    assert run.run(Allowed())
    assert (REPAIR, "") not in stack.database.entries
    stack.delete("k1")
    stack.deliver(stack.container())
    assert not stack.stored
    assert not stack.database.tombstones[TABLE]


class Killed(BaseException):
    pass


def killed_while_it_sweeps(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def sweep(*_: object, **__: object) -> int:
        raise Killed

    whole = MemoryTarget.sweep
    monkeypatch.setattr(MemoryTarget, "sweep", sweep)
    with pytest.raises(Killed):
        stack.backfill(RESYNC)
    monkeypatch.setattr(MemoryTarget, "sweep", whole)
    state = stack.context().checkpoints.pipeline()
    assert state is not None
    assert state.stage == stages.SWEEPING


def test_a_backfill_that_died_in_its_sweep_is_shown_as_stopped_and_fails_the_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = Stack(shards=1)
    for n in range(5):
        stack.write(f"k{n}", n)
    stack.backfill()
    scheduled(stack)
    stack.source.delete(TABLE, {"pk": "k3"})
    stack.trim_all()
    for shard in stack.mapping.ready():
        assert stack.mapping.event(shard) is None  # nothing tells the function of it
    killed_while_it_sweeps(stack, monkeypatch)
    assert status(stack).phase == "backfill"
    scheduled(stack)  # the run may be up: it was, a moment ago
    for _ in range(3):
        stack.clock.now += 15 * 60
        stack.write("k1", 1000)
        stack.deliver(stack.container())
        with pytest.raises(ConfigError, match=r"not ended.* for \d+ min.*--until backfilled"):
            scheduled(stack)
        assert status(stack).phase == "stopped"
    stack.backfill()
    scheduled(stack)
    assert status(stack).phase == "live"
    assert stack.stored == stack.wanted


def test_a_backfill_that_died_and_would_end_with_a_gap_needs_a_rescan(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack(shards=1)
    stack.write("k1", 1)
    stack.backfill()
    killed_while_it_sweeps(stack, monkeypatch)
    gap = Gap("records are lost", stack.clock.wall(), 1 << 20)
    stack.context().checkpoints.save([Save("gap", "g", 0, encode(gap))])
    stack.clock.now += 15 * 60
    stack.write("k1", 4)
    stack.deliver(stack.container())
    with pytest.raises(ConfigError, match=r"not ended.*: replicator resync CONFIG, then replicator run"):
        scheduled(stack)


def test_a_backfill_is_shown_while_its_run_is_up_whatever_invocations_come() -> None:
    stack = Stack(shards=1)
    for n in range(5):
        stack.write(f"k{n}", n)
    run = stack.scanning()
    for _ in range(5):
        stack.clock.now += 10
        run.coordinator.step()
        scheduled(stack)
        assert status(stack).phase == "backfill"
    assert run.run(Allowed())
    scheduled(stack)
    assert status(stack).phase == "live"
