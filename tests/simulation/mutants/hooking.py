"""Rules 6, 7, 8, 12 and 13: order, leaving is a delete, items are parked, ids in between, everything counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

from msgspec import structs

from replicator.batch import Batch, Outcome, Upsert, Write
from replicator.change import Change, Page, ScanPage
from replicator.engine import cleanup
from replicator.engine.delivery import Delivery
from replicator.hooks.hook import DocumentMapping, Poison
from replicator.operations import parked as parking
from replicator.pipeline import advance, compaction, parked, pipeline
from replicator.pipeline.batching import PageBuffer, Pages
from replicator.pipeline.compaction import BatchContext, Compacted, Documents, Failure, Latest
from replicator.pipeline.parked import Held, kept_keys
from replicator.pipeline.pipeline import Pipeline
from replicator.state import Parked, Place
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import (
    discards_around_sweeps,
    hooks_that_take_too_long,
    kept_expired_items,
    late_retries,
    repeated_decisions,
    resyncs_of_parked_items,
    retries_of_scanned_items,
    retries_with_another_hook,
    slow_hooks,
    with_hook,
    with_refusals,
)


@mutant("an item that leaves the filter is skipped", 7, with_hook("kept"))
def leaving_is_skipped(patch: Patch) -> None:
    right = compaction.compact_latest

    def skips(changes: Iterable[Latest], mapping: DocumentMapping, at: BatchContext, *items: Any) -> Compacted:
        found = right(changes, mapping, at, *items)
        found.writes = [w for w in found.writes if isinstance(w, Upsert) or w.weight]
        return found

    patch.setattr(advance, "compact_latest", skips)


@mutant("documents are deleted only when their item is removed", 7, with_hook("rekeyed"))
def deletes_only_on_remove(patch: Patch) -> None:
    right = compaction._writes

    def deletes_when_removed(
        text: str, now: Documents, leaves: set[Place], newest: Change, *rest: Any, **more: Any
    ) -> list[Write]:
        return right(text, now, leaves if newest.new is None else set(), newest, *rest, **more)

    patch.setattr(compaction, "_writes", deletes_when_removed)


@mutant("a poison change is skipped, and later changes of its item are applied", 8, with_hook("poisoned"))
def poison_is_skipped(patch: Patch) -> None:
    patch.setattr(compaction, "_park", _forgets)


@mutant("a later change forgets the documents that its item's parked changes left", 8, with_hook("poisoned fan"))
def leaves_are_forgotten(patch: Patch) -> None:
    patch.setattr(compaction, "held", lambda id, revision, value: Held(id, revision))


@mutant("a batch keeps the first old and the last new image only", 12, with_hook("fanned"))
def ends_only(patch: Patch) -> None:
    patch.setattr(compaction, "earlier", lambda run: [run[0].old])


@mutant("changes that are compacted away are not counted", 13)
def compacted_are_not_counted(patch: Patch) -> None:
    right = Compacted.part

    def miscounts(self: Compacted, source: str) -> Any:
        part = right(self, source)
        return structs.replace(part, counts=structs.replace(part.counts, read=len(self.writes)))

    patch.setattr(Compacted, "part", miscounts)


@mutant(
    "the positions of a partly refused batch are stored",
    8,
    with_refusals,
)
def refused_is_stored(patch: Patch) -> None:
    right = Delivery._finish

    def whatever(self: Delivery, batch: Batch, answer: Callable[[], Outcome]) -> bool:
        return right(self, batch, lambda: Outcome((), answer().superseded))

    patch.setattr(Delivery, "_finish", whatever)


@mutant("a poison change of an item with several documents is skipped", 8, with_hook("poisoned fan"))
def poison_of_many_is_skipped(patch: Patch) -> None:
    patch.setattr(compaction, "_park", _forgets)


def _forgets(
    found: Compacted, value: Parked, weight: int, at: BatchContext, unknown: Collection[str] = frozenset()
) -> None:
    found.parked += weight


@mutant(
    "a batch keeps the first old and the last new image only, of an item whose documents move", 12, with_hook("rekeyed")
)
def ends_only_of_moving(patch: Patch) -> None:
    ends_only.apply(patch)


@mutant("a retry considers the first old and the last new image only", 8, shape=late_retries)
def retry_of_ends(patch: Patch) -> None:
    right = parking._own

    def without(item: parking.ParkedItem) -> parking.ParkedItem:
        return replace(item, entry=replace(item.entry, leaves=()), dropped=())

    patch.setattr(parking, "_own", lambda change, p, mapping: right(change, without(p), mapping))


@mutant("a discarded change leaves no entry", 8, with_hook("rekeyed", "fanned", "poisoned fan"))
def drop_leaves_nothing(patch: Patch) -> None:
    right = parking.ParkedItem.discarded
    patch.setattr(parking.ParkedItem, "discarded", lambda self, at: replace(right(self, at), saves=[self.removal]))


@mutant("a run overwrites parked entries that a command changed", 8, shape=repeated_decisions)
def blind_saves(patch: Patch) -> None:
    right = vars(parked.Move)["saves"].fget
    patch.setattr(parked.Move, "saves", property(lambda self: [structs.replace(s, expected=None) for s in right(self)]))


@mutant("a refusal is forgotten when any batch is stored", 8)
def refusals_are_forgotten(patch: Patch) -> None:
    right = Pipeline._parked_durably

    def forgets(self: Pipeline, taken: Any) -> None:
        right(self, taken)
        self._refused.clear()

    patch.setattr(Pipeline, "_parked_durably", forgets)
    patch.setattr(PageBuffer, "give_back", _at_the_end)


def _at_the_end(self: PageBuffer, pages: Pages) -> None:
    """Pages that come back are cut into batches anew."""
    for source, each in reversed(pages):
        self._queues.setdefault(source, deque()).extendleft(reversed(each))
        self._weigh(each, 1)


@mutant(
    "items that a sweep spared are never swept",
    9,
    with_hook("rekeyed", "fanned", "poisoned fan"),
    shape=resyncs_of_parked_items,
)
def spared_for_ever(patch: Patch) -> None:
    patch.setattr(Pipeline, "owes_sweep", property(lambda self: False))


@mutant(
    "a sweep removes what a user discarded in its epoch",
    9,
    with_hook("poisoned", "poisoned fan"),
    shape=discards_around_sweeps,
)
def discarded_is_swept(patch: Patch) -> None:
    patch.setattr(cleanup, "kept_keys", lambda *given, **named: (kept_keys(*given, **named)[0], {}))


@mutant(
    "an item that a sweep spared must be swept once its change is discarded",
    9,
    with_hook("poisoned fan"),
    shape=discards_around_sweeps,
)
def discarded_is_settled(patch: Patch) -> None:
    def settled(self: Pipeline) -> bool:
        return any(self.parked.parked(item) is None for item in self.view.spared)

    patch.setattr(Pipeline, "owes_sweep", property(settled))


@mutant("an expiry that must be ignored is applied as a removal", 7, shape=kept_expired_items)
def expiries_count(patch: Patch) -> None:
    right = advance.streamed
    patch.setattr(pipeline, "streamed", lambda *given, **named: right(*given, **{**named, "ignore_expired": False}))


@mutant(
    "documents that a retry stored with another hook are unknown to the item's next change",
    8,
    shape=retries_with_another_hook,
)
def other_hooks_leave_nothing(patch: Patch) -> None:
    patch.setattr(parking.ParkedItem, "left", lambda self, *_: self.removal)


@mutant("a retry of a scanned item relies on the parked image alone", 8, shape=retries_of_scanned_items)
def retries_old_images(patch: Patch) -> None:
    patch.setattr(parking, "is_superseded", lambda *_: False)


@mutant("an image for which the hook took too long has no documents", 12, shape=hooks_that_take_too_long)
def too_long_is_nothing(patch: Patch) -> None:
    right = compaction._unknown

    def unknown(failures: Iterable[Failure], of_others: Collection[str | None]) -> dict[str, Poison]:
        return right([one for one in failures if compaction._text(one[0]) in of_others], of_others)

    patch.setattr(compaction, "_unknown", unknown)


@mutant("pages that a batch leaves since the hook takes long are lost", 6, shape=slow_hooks)
def left_pages_are_lost(patch: Patch) -> None:
    patch.setattr(PageBuffer, "leave", lambda self, source, pages, fits: None)


@mutant("pages that a batch leaves since the hook takes long come after later ones", 6, shape=slow_hooks)
def left_pages_come_late(patch: Patch) -> None:
    inner = PageBuffer.leave

    def leave(self: PageBuffer, source: str, pages: list[Page | ScanPage], fits: int | None) -> None:
        later = self._queues.pop(source, ())
        inner(self, source, pages, fits)
        if later:
            self._queues[source] = deque([*later, *self._queues[source]])

    patch.setattr(PageBuffer, "leave", leave)
