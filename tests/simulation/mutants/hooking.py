"""Rules 7, 8, 12 and 13: leaving is a delete, items are parked, ids in between, everything counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from replicator import compaction, passing
from replicator.batch import Batch, Outcome, Upsert, Write
from replicator.change import Change
from replicator.compaction import Circumstances, Compacted, Filing, Latest
from replicator.delivery import Delivery
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import hooked, refusing


@mutant("an item that leaves the filter is skipped", 7, hooked("kept"))
def leaving_is_skipped(patch: Patch) -> None:
    right = compaction.compact_latest

    def skips(changes: Iterable[Latest], filing: Filing, at: Circumstances) -> Compacted:
        found = right(changes, filing, at)
        found.writes = [w for w in found.writes if isinstance(w, Upsert) or w.weight]
        return found

    patch.setattr(passing, "compact_latest", skips)


@mutant("documents are deleted only when their item is removed", 7, hooked("rekeyed"))
def deletes_only_on_remove(patch: Patch) -> None:
    _with_writes(patch, lambda run, writes: [w for w in writes if isinstance(w, Upsert) or run[-1].new is None])


@mutant("a poison change is skipped, and its item goes on", 8, hooked("poisoned"))
def poison_is_skipped(patch: Patch) -> None:
    patch.setattr(compaction, "_park", _forgets)


@mutant("an item's later changes do not queue behind its parked one", 8, hooked("poisoned fan"))
def no_queue(patch: Patch) -> None:
    patch.setattr(compaction.ParkedItems, "queued", lambda self, text, epoch: False)


@mutant("a batch keeps the first old and the last new image only", 12, hooked("fanned"))
def ends_only(patch: Patch) -> None:
    right = compaction.run_writes

    def ends_only(run: Sequence[Change], filing: Filing) -> list[Write]:
        return right([msgspec.structs.replace(run[-1], old=run[0].old)], filing)

    patch.setattr(compaction, "run_writes", ends_only)


@mutant("changes that are compacted away are not counted", 13)
def compacted_are_not_counted(patch: Patch) -> None:
    right = Compacted.part

    def miscounts(self: Compacted, source: str) -> Any:
        part = right(self, source)
        return replace(part, counts=replace(part.counts, read=len(self.writes)))

    patch.setattr(Compacted, "part", miscounts)


@mutant(
    "the positions of a batch are stored though some of it was refused",
    8,
    refusing,
)
def refused_is_stored(patch: Patch) -> None:
    right = Delivery._finish

    def whatever(self: Delivery, batch: Batch, outcome: Outcome) -> bool:
        return right(self, batch, Outcome((), outcome.stale))

    patch.setattr(Delivery, "_finish", whatever)


def _with_writes(patch: Patch, change: Callable[[Sequence[Change], list[Write]], list[Write]]) -> None:
    right = compaction.run_writes
    patch.setattr(compaction, "run_writes", lambda run, filing: change(run, right(run, filing)))


@mutant("a poison change of an item with several documents is skipped", 8, hooked("poisoned fan"))
def poison_of_many_is_skipped(patch: Patch) -> None:
    patch.setattr(compaction, "_park", _forgets)


def _forgets(found: Compacted, change: Change, weight: int, *_: Any, **__: Any) -> None:
    found.parked += weight


@mutant(
    "a batch keeps the first old and the last new image only, of an item whose document moves", 12, hooked("rekeyed")
)
def ends_only_of_moving(patch: Patch) -> None:
    ends_only.apply(patch)
