"""Rule 9: a gap raises the epoch, and what the rescan did not confirm is swept."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from replicator.change import Shard
from replicator.engine import fetcher
from replicator.engine.cleanup import Cleanup
from replicator.engine.local import Driver
from replicator.errors import GapFound
from replicator.pipeline import stages
from replicator.pipeline.pipeline import Pipeline
from replicator.source import scan
from replicator.state import ShardState
from replicator.testing.memory import MemoryTarget
from tests.simulation.mutants import reading
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import (
    hours_skipped,
    removes,
    resyncs_with_losses,
    tables_made_again,
    trims,
    with_hook,
)


@mutant("a gap is logged and ignored", 9, trims)
def gap_is_ignored(patch: Patch) -> None:
    def goes_on(self: Driver, found: GapFound) -> None:
        state = self.pipeline.view.shards.get(found.shard or "")
        if state is None:
            raise found
        self.pipeline._pending.append(("shard", found.shard or "", replace(state, ended=True)))

    patch.setattr(Driver, "_gap", goes_on)


@mutant("a segment ends without a look at whose pages they were", 9, shape=tables_made_again)
def segments_end_unchecked(patch: Patch) -> None:
    right = scan.scan
    patch.setattr(fetcher, "scan", lambda table, segment, state: right(table, segment, state, check_end=False))


@mutant("a rescan is not followed by a sweep", 9, trims)
def no_sweep(patch: Patch) -> None:
    patch.setattr(MemoryTarget, "sweep", lambda self, table, below, spare: 0)


@mutant(
    "the sweep asks which items are gone, not which documents are unconfirmed",
    9,
    with_hook("kept"),
    shape=hours_skipped,
)
def sweep_by_absence(patch: Patch) -> None:
    right = MemoryTarget.sweep

    def absent_only(self: Any, table: Any, below: int, spare: Sequence[Any]) -> int:
        there = [(str(i["pk"]),) for i in self._universe.source.items("orders")]
        return right(self, table, below, [*spare, *there])

    patch.setattr(MemoryTarget, "sweep", absent_only)


@mutant("writes that are applied behind a sweep stay", 9, shape=resyncs_with_losses)
def one_sweep_only(patch: Patch) -> None:
    right = Cleanup._after_window
    patch.setattr(Cleanup, "_after_window", lambda self, state: right(self, replace(state, resync=False)))


@mutant(
    "an epoch starts at the oldest record of every shard, closed ones included", 9, trims, 10_000, shape=hours_skipped
)
def epochs_begin_at_the_oldest(patch: Patch) -> None:
    right = stages.first_shards

    def all_open(listed: Mapping[str, Shard], now: float) -> dict[str, ShardState]:
        return {id: replace(state, ended=False) for id, state in right(listed, now).items()}

    patch.setattr(stages, "first_shards", all_open)
    reading.late_shards_at_what_is_left.apply(patch)


@mutant("a batch that the target could not store stays in flight while its gap is recorded", 9, removes)
def left_in_flight(patch: Patch) -> None:
    right = Pipeline.give_back

    def give_back(self: Pipeline) -> None:
        if not isinstance(sys.exc_info()[1], GapFound):
            right(self)

    patch.setattr(Pipeline, "give_back", give_back)
