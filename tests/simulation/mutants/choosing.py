"""Resyncs of chosen items: what they read is newer than what is stored, and older than whatever follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from replicator.change import Change, ScanPage
from replicator.hooks.hook import DocumentMapping
from replicator.pipeline import advance, pipeline, stages
from replicator.pipeline.compaction import BatchContext, Compacted, compact_latest
from replicator.state import PipelineState, SegmentState
from replicator.version import epoch_of, version
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import requested_resyncs, requested_resyncs_beside_deletes


@mutant("chosen items are rescanned in the epoch that there is", 9, shape=requested_resyncs)
def no_epoch_of_their_own(patch: Patch) -> None:
    right = stages.partial
    patch.setattr(stages, "partial", lambda state, now: replace(right(state, now), epoch=state.epoch))


@mutant("chosen items replace whatever is stored by then", 5, shape=requested_resyncs)
def written_blindly(patch: Patch) -> None:
    right = advance.scanned

    def scanned(
        state: SegmentState, pages: Sequence[ScanPage], mapping: DocumentMapping, at: BatchContext, **marks: Any
    ) -> tuple[SegmentState, Compacted]:
        after, compacted = right(state, pages, mapping, at, **marks)
        if state.keys:
            newest = version(at.epoch, (1 << 47) - 1)
            for write in compacted.writes:
                assert epoch_of(write.version) == at.epoch
            changes = [Change(key, newest, new=image) for page in pages for key, image in page.items]
            compacted = compact_latest(((c, c.version, 1) for c in changes), mapping, at)
        return after, compacted

    patch.setattr(pipeline, "scanned", scanned)


@mutant("deletes leave no tombstones while chosen items are read", 5, shape=requested_resyncs_beside_deletes)
def forgets_deletes(patch: Patch) -> None:
    right = stages.remembers_deletes
    patch.setattr(stages, "remembers_deletes", lambda state: right(state) and not state.partial)


@mutant("what a resync of chosen items did not read is swept", 9, shape=requested_resyncs)
def sweeps_the_rest(patch: Patch) -> None:
    patch.setattr(PipelineState, "partial", property(lambda self: False))
    patch.setattr(PipelineState, "complete", property(lambda self: self.epoch))


@mutant("an item that is gone keeps its document in a resync of chosen items", 7, shape=requested_resyncs)
def keeps_what_is_gone(patch: Patch) -> None:
    right = advance.scanned

    def scanned(
        state: SegmentState, pages: Sequence[ScanPage], mapping: DocumentMapping, at: BatchContext, **marks: Any
    ) -> tuple[SegmentState, Compacted]:
        there = [replace_items(page) for page in pages]
        return right(state, there, mapping, at, **marks)

    patch.setattr(pipeline, "scanned", scanned)


def replace_items(page: ScanPage) -> ScanPage:
    return ScanPage(page.segment, [(key, image) for key, image in page.items if image is not None], page.cursor)
