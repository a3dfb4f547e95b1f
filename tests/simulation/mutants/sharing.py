"""Rule 2 where pipelines share the pages of a shard: each has a position of its own, and misses no record."""

from __future__ import annotations

from typing import Any

from replicator.source.sharing import FellBehind, SharedPages
from tests.simulation.mutants.mutant import Patch, mutant


@mutant("a pipeline that fell behind the shared pages resumes where they begin", 2)
def resumes_at_the_shared_position(patch: Patch) -> None:
    right = SharedPages._of

    def of(self: SharedPages, iterator: str) -> Any:
        try:
            return right(self, iterator)
        except FellBehind:
            number, _, poll = map(int, iterator.split()[1:])
            if (shard := self._by_number.get(number)) is None:
                raise
            return shard, shard.start, poll

    patch.setattr(SharedPages, "_of", of)


@mutant("the position of a slow pipeline moves with that of the fast one", 2)
def moves_with_the_fast_one(patch: Patch) -> None:
    right = SharedPages._of

    def of(self: SharedPages, iterator: str) -> Any:
        shard, position, poll = right(self, iterator)
        latest = shard.pages[-1].first if shard.pages else position
        return shard, max(position, latest), poll

    patch.setattr(SharedPages, "_of", of)
