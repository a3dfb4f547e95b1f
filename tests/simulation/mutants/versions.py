"""Rule 4: versions come from the lineage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from replicator import version
from replicator.change import Page, Record
from replicator.pipeline import advance, stages
from replicator.pipeline.compaction import latest, runs
from replicator.pipeline.pipeline import Pipeline
from replicator.state import ShardState
from tests.simulation.mutants.mutant import Patch, mutant
from tests.simulation.mutants.scenarios import (
    growing_sequence_numbers,
    nothing_parked,
    short_runs,
    unordered_across_shards,
    with_hook,
)


@mutant("a child's ordinals start at zero", 4)
def child_begins_at_nothing(patch: Patch) -> None:
    patch.setattr(stages, "start", lambda state, known: state)


@mutant("ordinals count only records that the hook keeps", 4, with_hook("kept"))
def only_kept_count(patch: Patch) -> None:
    right = advance.moved

    def kept_only(state: ShardState, pages: Sequence[Page], records: Sequence[Record]) -> ShardState:
        kept = len({r.key for r in records})
        return replace(right(state, pages, records), ordinal=state.ordinal + kept)

    patch.setattr(advance, "moved", kept_only)


@mutant("versions are sequence numbers", 4, unordered_across_shards)
def versions_are_sequences(patch: Patch) -> None:
    _number(patch, lambda records: ((int(r.sequence), r) for r in records))


@mutant("versions are sequence numbers, compared as strings", 4, growing_sequence_numbers)
def versions_are_strings(patch: Patch) -> None:
    _number(patch, lambda records: ((int(r.sequence.ljust(22, "0")), r) for r in records))


@mutant("versions are timestamps, with a counter within each second", 4, nothing_parked)
def versions_are_times(patch: Patch) -> None:
    def timed(records: Iterable[Record]) -> Iterator[tuple[int, Record]]:
        seconds: Counter[int] = Counter()  # of this process, in this batch
        for record in records:
            second = int(record.created)
            seconds[second] += 1
            yield second * 1_000_000 + seconds[second], record

    _number(patch, timed)


def _number(patch: Patch, numbers: Callable[[Iterable[Record]], Iterable[tuple[int, Record]]]) -> None:
    """Versions from something else than the lineage, as large as they may become."""
    patch.setattr(version, "ORDINAL_BITS", 80)
    patch.setattr(advance, "latest", lambda given, epoch: latest(numbers(r for _, r in given), epoch))
    patch.setattr(advance, "runs", lambda given, epoch: runs(numbers(r for _, r in given), epoch))


@mutant("anchors are not stored before they are used", 4, shape=short_runs)
def no_anchor(patch: Patch) -> None:
    patch.setattr(Pipeline, "_put_anchors", lambda self, taken: False)
