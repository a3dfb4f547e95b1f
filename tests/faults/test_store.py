"""The checkpoint store is separate from the target, and one of them cannot be reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial

import pytest

from replicator.batch import Batch, Outcome
from replicator.checkpoints.contract import NO_COUNTS
from replicator.engine.delivery import CONFIRMED
from replicator.errors import TransientError
from replicator.state import Counts, Owner, Save
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from replicator.testing.memory_index import MemoryIndex
from tests.faults.world import World


class Apart:
    """A target and a store; the store cannot be reached from ``cut`` on, for ``lasting`` seconds."""

    def __init__(self, faults: World, cut: float, lasting: float) -> None:
        clock, database = faults.clock, faults.database
        begun = clock()
        self.written: list[float] = []
        this = self

        class Index(MemoryIndex):
            def write(self, batch: Batch) -> Outcome:
                if batch.size:
                    this.written.append(clock() - begun)
                return super().write(batch)

        class Store(MemoryCheckpoints):
            def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
                if cut <= clock() - begun < cut + lasting:
                    raise TransientError("the store of the checkpoints cannot be reached")
                super().save(saves, counts)

        faults.target = lambda: Index(database, now=clock)
        faults.store = lambda: Store(database)


def changing(faults: World, seconds: int) -> None:
    for n in range(seconds):
        faults.clock.plan(n, partial(faults.put, "k1", n=f"{n}"))


def test_a_run_that_cannot_reach_its_store_stops_writing_and_resumes_later(faults: World) -> None:
    faults.fill()
    apart = Apart(faults, cut=20, lasting=60)
    changing(faults, 100)
    ended = faults.run(seconds=150)

    assert ended.code == 0
    assert any("the store of the checkpoints cannot be reached" in e["reason"] for e in ended.events if "reason" in e)
    assert [at for at in apart.written if 20 + CONFIRMED < at < 80] == []
    faults.copied()


def test_a_run_that_was_replaced_while_it_could_not_reach_its_store_ends_once_it_can(faults: World) -> None:
    faults.fill()
    apart = Apart(faults, cut=20, lasting=60)
    changing(faults, 100)
    faults.clock.plan(50, lambda: MemoryCheckpoints(faults.database).claim(Owner("other", "host", 1, 0.0)))
    ended = faults.run(seconds=150)

    assert ended.code == 5
    assert [at for at in apart.written if at > 20 + CONFIRMED] == []


@pytest.mark.parametrize("apart", [False, True], ids=["in the target", "apart"])
def test_a_run_whose_checkpoints_are_reverted_ends_with_a_message_and_the_next_one_resumes(
    faults: World, apart: bool
) -> None:
    """E.g. a standby takes over without the last commits; the rows are reverted with their checkpoints, or stay."""
    faults.fill()
    if apart:
        Apart(faults, cut=math.inf, lasting=0)
    changing(faults, 100)
    earlier: list[MemoryDatabase] = []
    faults.clock.plan(30, lambda: earlier.append(deepcopy(faults.database)))
    faults.clock.plan(60, lambda: put_back(faults.database, earlier[0], rows=not apart))
    ended = faults.run(seconds=150)

    assert ended.code == 8
    assert "the checkpoints were reverted to an earlier state" in ended.err
    assert "Start the run again: it resumes from what is stored" in ended.err
    faults.copied()


def put_back(database: MemoryDatabase, earlier: MemoryDatabase, *, rows: bool) -> None:
    database.entries, database.counts = earlier.entries, earlier.counts
    if rows:
        database.rows, database.tombstones = earlier.rows, earlier.tombstones
