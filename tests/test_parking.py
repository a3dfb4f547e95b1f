"""Retrying and dropping parked changes beside a run: the guard, the epoch and the entries' revisions keep it safe."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from replicator.attributes import image
from replicator.batch import Batch, Counts, Delete, Outcome, Part
from replicator.change import KeyAttribute, KeySchema
from replicator.checkpoints import Parked, PipelineState, Save, encode
from replicator.compaction import Filing
from replicator.delivery import Delivery, Patience
from replicator.errors import ConfigError
from replicator.parking import ParkedItem, drop, parked_items, pipeline_of, retried, retry
from replicator.pipeline import Pipeline
from replicator.position import version
from replicator.target import Table
from replicator.testing.memory import MemoryDatabase, MemoryIndex, MemoryTarget

STATE = PipelineState(1024, "stream", "table", "id", "following")
AS_IS = Filing(None, ("orders",))
TABLE = Table("orders", KeySchema((KeyAttribute("id", "S"),)))
SOURCE = "shard:s"


@pytest.fixture
def database() -> MemoryDatabase:
    return MemoryDatabase()


@pytest.fixture
def target(database: MemoryDatabase) -> MemoryTarget:
    found = MemoryTarget(database)
    found.open([TABLE], 1024)
    return found


def park(target: MemoryTarget, key: str, ordinal: int, *, epoch: int = 1024, new: bool = True) -> None:
    """What a run does when it parks a change."""
    change = Parked(
        key=(key,),
        version=version(epoch, ordinal),
        reason="broken",
        parked=0.0,
        new=image({"id": key, "n": ordinal}).decode() if new else None,
        source=SOURCE,
    )
    save = Save("parked", f'["{key}"]', None, encode(change))
    target.write(Batch([Part(SOURCE, (), Counts(read=1, parked=1))], [save]))


def only(target: MemoryTarget) -> ParkedItem:
    (found,) = parked_items(target.checkpoints)
    return found


def test_a_retry_stores_the_item_and_moves_its_count(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)

    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 7}}
    assert database.counts[SOURCE] == Counts(read=1, applied=1)
    assert parked_items(target.checkpoints) == []


def test_a_parked_removal_removes(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)
    retry(only(target), AS_IS, target, target.checkpoints, STATE)
    park(target, "a", 8, new=False)

    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {}


def test_an_older_change_than_the_targets_is_stale(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 9)
    retry(only(target), AS_IS, target, target.checkpoints, STATE)
    park(target, "a", 7)

    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 9}}
    assert database.counts[SOURCE] == Counts(read=2, applied=1, stale=1)


@pytest.mark.parametrize("how", ["retry", "drop"])
def test_an_entry_that_a_run_changed_meanwhile_stays(database: MemoryDatabase, target: MemoryTarget, how: str) -> None:
    park(target, "a", 7)
    seen = only(target)
    park(target, "a", 8)
    reason = drop(seen, target.checkpoints) if how == "drop" else retry(seen, AS_IS, target, target.checkpoints, STATE)

    assert reason == "a run has changed it meanwhile; look at it again"
    assert only(target).first.version == version(1024, 8)
    assert database.documents("orders") == {}


def test_a_change_parked_before_a_resync_is_not_brought_back(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)

    assert "before the last resync" in retry(
        only(target), AS_IS, target, target.checkpoints, replace(STATE, epoch=1025)
    )
    assert database.documents("orders") == {}


def test_dropping_counts_the_change_as_dropped(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)

    assert drop(only(target), target.checkpoints) == ""
    assert database.counts[SOURCE] == Counts(read=1, dropped=1)
    assert parked_items(target.checkpoints) == []


def test_while_a_scan_runs_a_retried_removal_leaves_a_tombstone(target: MemoryTarget) -> None:
    park(target, "a", 7, new=False)

    assert retried(only(target), AS_IS, tombstones=True).tombstones
    retry(only(target), AS_IS, target, target.checkpoints, replace(STATE, stage="scanning"))
    assert target._database.tombstones["orders"] == {("a",): version(1024, 7)}


def test_one_item_is_found_by_its_key_and_not_by_the_beginning_of_it(target: MemoryTarget) -> None:
    for key in ("a", "ab"):
        park(target, key, 1)

    assert [i.item for i in parked_items(target.checkpoints)] == ['["a"]', '["ab"]']
    assert [i.item for i in parked_items(target.checkpoints, '["a"]')] == ['["a"]']
    assert parked_items(target.checkpoints, '["a') == []


def test_a_pipeline_without_state_never_ran(target: MemoryTarget) -> None:
    with pytest.raises(ConfigError, match="has never run"):
        pipeline_of(target.checkpoints)
    target.checkpoints.save([Save("pipeline", "", 0, encode(STATE))])
    assert pipeline_of(target.checkpoints) == STATE


# a target without transactions


@pytest.fixture
def index(database: MemoryDatabase) -> MemoryIndex:
    index = MemoryIndex(database)
    index.open([TABLE], 1024)
    return index


def test_without_transactions_the_entry_goes_once_the_document_is_stored(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    park(target, "a", 7)

    assert retry(only(target), AS_IS, index, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 7}}
    assert database.counts[SOURCE] == Counts(read=1, applied=1)
    assert parked_items(target.checkpoints) == []


def test_without_transactions_a_retried_removal_leaves_a_tombstone(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """A request that the run gave up may still arrive behind it."""
    park(target, "a", 7, new=False)

    assert retry(only(target), AS_IS, index, target.checkpoints, STATE) == ""
    assert database.tombstones["orders"] == {("a",): version(1024, 7)}


def test_an_item_that_a_run_removed_meanwhile_is_not_brought_back(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """Neither where the run was done before the retry began, nor where the retry is in the middle of it."""
    checkpoints = target.checkpoints
    park(target, "a", 7)
    seen = only(target)
    healing = Batch(
        [Part(SOURCE, [Delete("orders", ("a",), version(1024, 9), ("a",))], Counts(read=1))], seen.removals()
    )
    delivery = Delivery(index, checkpoints, cast(Pipeline, Accepting()), cast(Patience, lambda act: act()), lambda: 0.0)
    delivery.offer(healing)

    assert retry(seen, AS_IS, index, checkpoints, STATE) == "a run has changed it meanwhile; look at it again"
    database.volatile.clear()  # the server was restarted
    index.write(retried(seen, AS_IS, tombstones=False))  # a retry that had asked before
    assert database.documents("orders") == {}


class Accepting:
    """A pipeline that is told of batches."""

    def stored(self, batch: Batch, outcome: Outcome, now: float) -> None:
        assert not outcome.rejections
