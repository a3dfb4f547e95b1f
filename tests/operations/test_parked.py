"""Retrying and dropping parked changes beside a run: the guard, the epoch and the entries' revisions keep it safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, cast

import pytest

from connectors.dynamodb.options import DynamoDBOptions
from connectors.dynamodb.target import DynamoDB
from replicator import Document
from replicator.batch import Batch, Delete, DocumentId, Outcome, Part, Rejection, Upsert
from replicator.change import Change, Listing, Page, Record, Shard
from replicator.checkpoints.contract import NO_COUNTS, Claimed
from replicator.engine import preexisting
from replicator.engine.cleanup import Cleanup
from replicator.engine.delivery import Delivery
from replicator.engine.parked_limits import IDLE_INTERVAL, ParkedWatch
from replicator.engine.retry import RetryPolicy
from replicator.engine.startup import with_hook
from replicator.errors import ConfigError, Fenced, TransientError, Unfinished
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import KeyAttribute, KeySchema
from replicator.operations import parked
from replicator.operations.parked import (
    CHANGED,
    OVERTAKEN,
    SUPERSEDED,
    ListedItems,
    ParkedItem,
    drop,
    parked_items,
    pipeline_of,
    retried,
)
from replicator.operations.scanned import SourceItems
from replicator.pipeline.checkpoint_view import CheckpointView
from replicator.pipeline.compaction import BatchContext, compact_runs
from replicator.pipeline.parked import Held, ParkedItems, held, kept_keys, known, parked_id, parked_keys
from replicator.pipeline.pipeline import Pipeline
from replicator.source.table import SourceTable
from replicator.state import Counts, Dropped, GapRepair, Heartbeat, Owner, Parked, PipelineState, Save, encode
from replicator.target.contract import Table, Target
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase, MemoryTarget
from replicator.testing.memory_index import MemoryIndex
from replicator.version import version

STATE = PipelineState(1024, "stream", "table", "id", "following")
AS_IS = DocumentMapping(None, ("orders",))
TABLE = Table("orders", KeySchema((KeyAttribute("id", "S"),)))
SOURCE = "segment:0"
ORIGIN = SourceTable(
    "source",
    "table",
    "id",
    TABLE.keys,
    0,
    0,
    "stream",
    True,
    "NEW_AND_OLD_IMAGES",
    "identity",
    "server",
    requested="source",
)


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
    save = Save("parked", f'["{key}"]@{change.version:019d}', None, encode(change))
    target.write(Batch([Part(SOURCE, (), Counts(read=1, parked=1))], [save]))


def retry(
    item: ParkedItem,
    mapping: DocumentMapping,
    target: Target,
    checkpoints: MemoryCheckpoints,
    state: PipelineState = STATE,
    now: Callable[[], float] = time.time,
    source: SourceItems | None = None,
) -> str:
    """A retry of a pipeline that is as ``state`` says, unless there is one already."""
    checkpoints._database.entries.setdefault(("pipeline", ""), (1, encode(state)))
    return parked.retry(item, mapping, target, checkpoints, now, source)


def only(target: MemoryTarget) -> ParkedItem:
    (found,) = parked_items(target.checkpoints)
    return found


def test_a_retry_stores_the_item_and_moves_its_count(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)

    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 7}}
    assert database.counts[SOURCE] == Counts(read=1, applied=1)
    assert list(parked_items(target.checkpoints)) == []


def test_a_parked_removal_removes(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)
    retry(only(target), AS_IS, target, target.checkpoints, STATE)
    park(target, "a", 8, new=False)

    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {}


def stops(target: MemoryTarget) -> Iterator[None]:
    """A run that stops in good order, in its two steps: it looks at the tables, and saves what it found."""
    filled, retried = preexisting.filled(target.checkpoints, target, [TABLE])
    yield
    left = Heartbeat(0.0, "stopped", filled=tuple(filled), retried=retried)
    target.checkpoints.save([Save("pulse", "", None, encode(left))])
    yield


def emptied(target: MemoryTarget) -> Sequence[str]:
    """The tables that the next run would take for emptied by hand."""
    return list(preexisting.inspect(CheckpointView(target.checkpoints.read()), ORIGIN, target, [TABLE], None).emptied)


@pytest.mark.parametrize("looks", ["before", "while", "behind"])
@pytest.mark.parametrize("saves", ["before", "while", "behind"])
def test_a_retried_removal_may_leave_a_table_empty_however_a_run_stops_beside_it(
    target: MemoryTarget, monkeypatch: pytest.MonkeyPatch, looks: str, saves: str
) -> None:
    """Else the next run would take it for one that was emptied by hand."""
    order = ["before", "while", "behind"]
    if order.index(looks) > order.index(saves):
        pytest.skip("a run looks before it saves")
    park(target, "a", 7)
    retry(only(target), AS_IS, target, target.checkpoints, STATE)
    park(target, "a", 8, new=False)
    stop, write = stops(target), target.write

    def steps(when: str) -> None:
        for _ in range((looks == when) + (saves == when)):
            next(stop)

    def written(batch: Batch) -> Outcome:
        steps("while")
        return write(batch)

    monkeypatch.setattr(target, "write", written)
    steps("before")
    retry(only(target), AS_IS, target, target.checkpoints, STATE)
    steps("behind")
    assert target.empty([TABLE]) == ["orders"]
    assert emptied(target) == []


def test_a_table_that_is_emptied_by_hand_after_a_retried_removal_is_noticed(target: MemoryTarget) -> None:
    """Once a run has stopped behind it."""
    for key, ordinal in (("a", 7), ("b", 8)):
        park(target, key, ordinal)
        retry(only(target), AS_IS, target, target.checkpoints, STATE)
    park(target, "a", 9, new=False)
    retry(only(target), AS_IS, target, target.checkpoints, STATE)
    for _ in stops(target):
        pass
    assert emptied(target) == []
    target._database.rows["orders"].clear()
    assert emptied(target) == ["orders"]


def test_a_change_older_than_the_targets_version_is_superseded(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 9)
    retry(only(target), AS_IS, target, target.checkpoints, STATE)
    park(target, "a", 7)

    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 9}}
    assert database.counts[SOURCE] == Counts(read=2, applied=1, superseded=1)


@pytest.mark.parametrize("how", ["retry", "drop"])
def test_an_entry_that_a_run_changed_meanwhile_stays(database: MemoryDatabase, target: MemoryTarget, how: str) -> None:
    park(target, "a", 7)
    seen = only(target)
    park(target, "a", 8)
    target.checkpoints.save([seen.removal])
    reason = drop(seen, target.checkpoints) if how == "drop" else retry(seen, AS_IS, target, target.checkpoints, STATE)

    assert reason == "a run has changed it in the meantime; look at it again"
    assert only(target).entry.version == version(1024, 8)
    assert database.documents("orders") == {}


def test_an_item_that_a_run_settles_while_the_hook_fails_on_it_is_not_called_parked(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    park(target, "a", 7)
    item = only(target)
    settles = [True]

    def fails(_: Item) -> NoReturn:
        if settles.pop():
            target.checkpoints.save([item.removal])
        raise ValueError

    mapping = DocumentMapping(Hook("fails", fails, "", False), ("orders",))
    assert retry(item, mapping, target, target.checkpoints) == CHANGED, "the command looks again, and finds it gone"
    park(target, "a", 8)
    settles.append(False)
    assert "hook fails raised ValueError" in retry(only(target), mapping, target, target.checkpoints)


def test_a_change_parked_before_a_resync_is_not_brought_back(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)

    assert "before the last resync" in retry(
        only(target), AS_IS, target, target.checkpoints, replace(STATE, epoch=1025)
    )
    assert database.documents("orders") == {}


def test_a_retry_during_a_resync_says_that_the_item_is_read_again(target: MemoryTarget) -> None:
    park(target, "a", 7)
    rescanning = replace(STATE, epoch=1025, stage="scanning", resync=True)
    assert retry(only(target), AS_IS, target, target.checkpoints, rescanning) == (
        "a resync is in progress, which reads the item again: nothing is left to do"
    )


def test_what_an_export_brought_is_retried_once_the_gap_is_repaired(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """Until then it may be older than what a newer export brought at the same version."""
    park(target, "a", 0)
    repairing = replace(STATE, stage="scanning", repair=GapRepair(1.0, 1))
    reason = retry(only(target), AS_IS, target, target.checkpoints, repairing)
    assert "a gap is being repaired from exports" in reason
    assert database.documents("orders") == {}

    repaired = replace(STATE, repair=GapRepair(1.0, 1, done=True))
    del database.entries["pipeline", ""]
    assert retry(only(target), AS_IS, target, target.checkpoints, repaired) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 0}}


def test_dropping_counts_the_change_as_dropped(database: MemoryDatabase, target: MemoryTarget) -> None:
    park(target, "a", 7)

    assert drop(only(target), target.checkpoints) == ""
    assert database.counts[SOURCE] == Counts(read=1, filtered=1)
    assert list(parked_items(target.checkpoints)) == []


def test_while_a_scan_runs_a_retried_removal_leaves_a_tombstone(target: MemoryTarget) -> None:
    park(target, "a", 7, new=False)

    assert retried(only(target), AS_IS, replace(STATE, stage="scanning")).tombstones
    retry(only(target), AS_IS, target, target.checkpoints, replace(STATE, stage="scanning"))
    assert target._database.tombstones["orders"] == {("a",): version(1024, 7)}


def test_items_that_are_gone_before_their_turn_cost_one_look_at_all(target: MemoryTarget) -> None:
    for n in range(20):
        park(target, f"k{n:02}", n + 1)
    store = Counting(target._database)
    found = parked_items(store)
    next(found)
    target.checkpoints.save([item.removal for item in parked_items(target.checkpoints) if item.item > '["k05"]'])
    assert len(list(found)) == 5
    assert store.looks == 2


class Moving(MemoryCheckpoints):
    """A store whose item "hot" is parked anew after each listing; ``always``: also before each read of its image."""

    always = False
    looks = count = 0

    def park_anew(self) -> None:
        self.count += 1
        old = [id for kind, id in self._database.entries if kind == "parked" and id.startswith('["hot"]')]
        change = Parked(("hot",), version(1024, self.count), "broken", 0.0, source=SOURCE)
        new = Save("parked", parked_id(change.key, change.version), 0, encode(change))
        MemoryCheckpoints(self._database).save([*(Save("parked", id, 1, None) for id in old), new])

    def read(self) -> Claimed:
        found = super().read()
        self.looks += 1
        self.park_anew()
        return found

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        listed = [id for kind, id in self._database.entries if kind == "parked" and id.startswith(prefix)]
        if self.always:
            self.park_anew()
        return super().parked(prefix, listed)


@pytest.mark.parametrize("always", [False, True])
def test_an_item_that_is_parked_anew_faster_than_all_are_listed_ends_no_command(
    target: MemoryTarget, *, always: bool
) -> None:
    store = Moving(target._database)
    store.always = always
    park(target, "cold", 1)
    store.park_anew()
    listed = ListedItems(store)
    found = [(i.item, i.entry.version, i.revision) for i in listed]

    newest = version(1024, store.count)
    assert found == [('["cold"]', version(1024, 1), 1)] + ([] if always else [('["hot"]', newest, 1)])
    assert listed.unread == ({'["hot"]'} if always else set())
    assert store.looks <= 5


def test_a_retry_of_a_scanned_item_does_not_bring_back_a_deleted_document(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """The scan's page was read before the item was deleted, and comes through, refused, after its delete was stored."""
    removed = [Delete("orders", (key,), version(1024, 5), (key,)) for key in ("a", "b")]
    target.write(Batch([Part(SOURCE, removed)], tombstones=True))
    park(target, "a", 0)
    cleanup = purging(target, target.checkpoints)
    while cleanup.do():
        pass

    assert database.tombstones["orders"] == {("a",): version(1024, 5)}
    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {}


def purging(target: MemoryTarget, store: MemoryCheckpoints, mapping: DocumentMapping = AS_IS) -> Cleanup:
    """The cleanup of a run that is about to purge, and knows what is parked."""
    pipeline = Pipeline(mapping, target.checkpoints.claim(Owner("run", "here", 1, 0.0)))
    at_once = cast(RetryPolicy, lambda act, **_: act())
    delivery = Delivery(target, target.checkpoints, pipeline, at_once, lambda: 0.0)
    pipeline.begin(replace(STATE, stage="purging"), Listing((Shard("s"),), True, "ENABLED", 0.0), {})
    delivery.flush()
    delivery.know_parked()
    return Cleanup(target, store, [TABLE], pipeline, delivery, at_once, float, float, None)


class InPieces(MemoryTarget):
    """A target that purges in several pieces, and notes what each spares."""

    def __init__(self, database: MemoryDatabase) -> None:
        super().__init__(database)
        self.spared: list[list[DocumentId]] = []

    def purge(self, table: Table, below: int, spare: Sequence[DocumentId] = ()) -> int:
        self.spared.append(sorted(spare))
        return 5 - len(self.spared)


@pytest.mark.parametrize("own_ids", [False, True])
def test_a_purge_goes_by_what_the_run_knows_and_reads_no_checkpoints(target: MemoryTarget, *, own_ids: bool) -> None:
    """It may take hours of pieces, and there may be gigabytes of checkpoints."""
    pieces, store = InPieces(target._database), Counting(target._database)
    pieces.open([TABLE], 1024)
    park(target, "a", 1)
    cleanup = purging(pieces, store, BROKEN if own_ids else AS_IS)
    cleanup.do()
    parked_by_now = [parked_id((key,), version(1024, 2)) for key in ("a", "b")]
    cleanup.pipeline.know(ParkedItems.of(map(Held, parked_by_now)))
    cleanup.do()

    first: DocumentId = ('["a"]',) if own_ids else ("a",)
    assert pieces.spared == [[first], [first, ('["b"]',) if own_ids else ("b",)]]
    assert (store.looks, store.images) == (0, 0)


def test_a_purge_reads_the_checkpoints_once_for_a_key_that_is_too_long_for_an_id(target: MemoryTarget) -> None:
    pieces, store = InPieces(target._database), Counting(target._database)
    pieces.open([TABLE], 1024)
    park(target, "a", 1)
    long = "k" * 600
    change = Parked((long,), version(1024, 3), "because", 0.0)
    store.save([Save("parked", parked_id(change.key, change.version), 0, encode(change))])
    cleanup = purging(pieces, store)
    while cleanup.do():
        pass

    assert pieces.spared == [[("a",), (long,)]] * 5
    assert (store.looks, store.images) == (1, 1)


def test_an_index_in_memory_spares_what_a_purge_is_told_to(database: MemoryDatabase, index: MemoryIndex) -> None:
    removed = [Delete("orders", (key,), version(1024, 5), (key,)) for key in ("a", "b")]
    index.write(Batch([Part("other", removed)], tombstones=True))
    while index.purge(TABLE, version(1025, 0), spare=[("a",)]):
        pass
    assert database.tombstones["orders"] == {("a",): version(1024, 5)}


def test_one_item_is_found_by_its_key_and_not_by_the_beginning_of_it(target: MemoryTarget) -> None:
    for key in ("a", "ab"):
        park(target, key, 1)

    assert [i.item for i in parked_items(target.checkpoints)] == ['["a"]', '["ab"]']
    assert [i.item for i in parked_items(target.checkpoints, '["a"]')] == ['["a"]']
    assert list(parked_items(target.checkpoints, '["a')) == []


def test_an_item_that_is_parked_again_before_its_turn_is_listed_in_its_new_state(target: MemoryTarget) -> None:
    for key in ("a", "b", "c", "d"):
        park(target, key, 1)
    found = parked_items(target.checkpoints)
    assert next(found).item == '["a"]'
    target.checkpoints.save(
        [item.removal for item in parked_items(target.checkpoints) if item.item in ('["b"]', '["c"]')]
    )
    park(target, "b", 2)

    assert [(i.item, i.entry.version) for i in found] == [('["d"]', version(1024, 1)), ('["b"]', version(1024, 2))]


def test_what_is_parked_after_the_items_were_listed_does_not_come(target: MemoryTarget) -> None:
    """A person was asked about those that were listed."""
    for key in ("b", "c"):
        park(target, key, 1)
    found = ListedItems(target.checkpoints)
    lazily = parked_items(target.checkpoints)
    park(target, "a", 1)
    park(target, "d", 1)

    assert len(found) == 2
    assert [i.item for i in found] == ['["b"]', '["c"]']
    assert [i.item for i in lazily] == ['["b"]', '["c"]']


def test_an_item_that_is_parked_again_by_a_concurrent_resync_leaves_a_tombstone(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """The scan may have read the item before it was removed."""
    pipeline = replace(STATE, epoch=1025, stage="scanning", resync=True)
    target.checkpoints.save([Save("pipeline", "", 0, encode(pipeline))])
    park(target, "a", 7, epoch=1025, new=False)

    assert retry(only(target), AS_IS, target, target.checkpoints, STATE) == ""
    assert database.tombstones["orders"] == {("a",): version(1025, 7)}


def test_a_pipeline_without_state_never_ran(target: MemoryTarget) -> None:
    with pytest.raises(ConfigError, match="has not started yet"):
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
    assert list(parked_items(target.checkpoints)) == []


def test_without_transactions_a_retried_removal_leaves_a_tombstone(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """A request that the run gave up may still arrive behind it."""
    park(target, "a", 7, new=False)

    assert retry(only(target), AS_IS, index, target.checkpoints, STATE) == ""
    assert database.tombstones["orders"] == {("a",): version(1024, 7)}


def test_an_item_that_a_run_removed_before_its_retry_began_is_not_brought_back(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """A retry notes what it is about to send, and loses; so the run has nothing to doubt."""
    park(target, "a", 7)
    seen = only(target)
    run = following(index, target.checkpoints)
    removed(run, 9)

    assert not index.in_doubt
    assert retry(seen, AS_IS, index, MemoryCheckpoints(database), STATE) == CHANGED
    assert database.documents("orders") == {}


def test_an_item_that_a_run_removes_in_the_middle_of_its_retry_is_not_brought_back(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """The run has deleted it without a tombstone before it notices."""
    park(target, "a", 7)
    run = following(index, target.checkpoints)
    command = Meanwhile(database)
    command.open([TABLE], 1024)
    command.meanwhile = lambda: removed(run, 9)

    assert retry(only(target), AS_IS, command, MemoryCheckpoints(database), STATE) == CHANGED
    assert database.entries["retried", "1024"][0] == 2, "a run may have seen the note long before the write"
    assert database.tombstones["orders"] == {("a",): version(1024, 9)}
    assert database.documents("orders") == {}
    assert index.in_doubt


def test_a_retry_that_takes_long_asks_in_between_whether_the_item_is_still_parked(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """Else it would go on when a run that changed the item has purged its tombstone."""
    park(target, "a", 7)
    command = InStretches(database)
    command.open([TABLE], 1024)
    assert retry(only(target), AS_IS, command, MemoryCheckpoints(database), STATE) == ""
    assert command.stretches == 2
    assert list(parked_items(target.checkpoints)) == []

    park(target, "a", 8)
    run = following(index, target.checkpoints)
    command = InStretches(database)
    command.open([TABLE], 1024)
    command.meanwhile = lambda: removed(run, 9)
    assert retry(only(target), AS_IS, command, MemoryCheckpoints(database), STATE) == CHANGED
    assert command.stretches == 1
    assert database.documents("orders") == {}


class Slow(MemoryCheckpoints):
    """A store whose answer to the first save comes late: the command was suspended while it waited."""

    late: Callable[[], None] | None = None

    def save(self, saves: Sequence[Save], counts: Mapping[str, Counts] = NO_COUNTS) -> None:
        super().save(saves, counts)
        late, self.late = self.late, None
        if late is not None:
            late()


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_retry_that_was_suspended_behind_its_note_brings_no_removed_item_back(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """The run's doubt, which began with the note, is over, and its tombstone was forgotten."""
    clock = Clock()
    park(target, "a", 7)
    index, command = MemoryIndex(database, now=clock), MemoryIndex(database, now=clock)
    for one in (index, command):
        one.open([TABLE], 1024)
    run = following(index, target.checkpoints)
    store = Slow(database)

    def meanwhile() -> None:
        run.know_parked()
        clock.now += 400
        index.in_doubt.settle()
        removed(run, 9)
        database.volatile.clear()

    store.late = meanwhile
    assert retry(only(target), AS_IS, command, store, STATE, clock) == CHANGED
    assert database.tombstones["orders"] == {}
    assert database.documents("orders") == {}


def test_a_retry_that_was_suspended_after_its_note_saves_it_again_and_continues(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    clock, store = Clock(), Slow(database)
    park(target, "a", 7)

    def meanwhile() -> None:
        clock.now += 400

    store.late = meanwhile
    assert retry(only(target), AS_IS, index, store, STATE, clock) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 7}}
    assert list(parked_items(target.checkpoints)) == []
    assert database.entries["retried", "1024"][0] == 2


def test_a_retry_whose_write_came_late_behind_a_runs_change_says_that_it_is_in_doubt(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """No clock can be looked at between the last look and the request; what was sent is in doubt again."""
    clock = Clock()
    park(target, "a", 7)
    index = MemoryIndex(database, now=clock)
    index.open([TABLE], 1024)
    run = following(index, target.checkpoints)
    command = Meanwhile(database, now=clock)
    command.open([TABLE], 1024)

    def meanwhile() -> None:
        run.know_parked()
        clock.now += 400
        index.in_doubt.settle()
        removed(run, 9)

    command.meanwhile = meanwhile
    assert retry(only(target), AS_IS, command, MemoryCheckpoints(database), STATE, clock) == OVERTAKEN
    assert not index.in_doubt
    run.know_parked()
    assert index.in_doubt


class InStretches(MemoryIndex):
    """A target that stores a batch when it comes for the second time."""

    stretches = 0
    meanwhile: Callable[[], None] = staticmethod(lambda: None)

    def write(self, batch: Batch) -> Outcome:
        self.stretches += 1
        if self.stretches > 1:
            return super().write(batch)
        self.meanwhile()
        raise Unfinished("the rest follows")


class Meanwhile(MemoryIndex):
    """A target at whose writes something else happens first. The server is restarted after that."""

    meanwhile: Callable[[], None]

    def write(self, batch: Batch) -> Outcome:
        self.meanwhile()
        self._database.volatile.clear()
        return super().write(batch)


def following(index: MemoryIndex, checkpoints: MemoryCheckpoints, state: PipelineState = STATE) -> Delivery:
    """A run that knows what is parked."""
    pipeline = Pipeline(AS_IS, checkpoints.claim(Owner("run", "here", 1, 0.0)))
    delivery = Delivery(index, checkpoints, pipeline, cast(RetryPolicy, lambda act, **_: act()), lambda: 0.0)
    pipeline.begin(state, Listing((Shard("s"),), True, "ENABLED", 0.0), {})
    delivery.flush()
    list(pipeline.openings())
    delivery.know_parked()
    return delivery


class Ends(Meanwhile):
    """Stores a batch, and then does not say that it did."""

    how: BaseException | Sequence[Rejection] = ()

    def write(self, batch: Batch) -> Outcome:
        super().write(batch)
        if isinstance(self.how, BaseException):
            raise self.how
        return Outcome(self.how)


@pytest.mark.parametrize("how", ["refused in part", "no response", "unfinished", "made read-only", "Ctrl-C"])
def test_a_write_that_came_late_is_in_doubt_also_where_it_is_not_said_to_be_stored(
    database: MemoryDatabase, target: MemoryTarget, how: str
) -> None:
    clock = Clock()
    found = park_tags(target, ["y"], leaves=(("orders", "x"),))
    index = MemoryIndex(database, now=clock)
    index.open([TABLE], 1024)
    run = following(index, target.checkpoints)
    command = Ends(database, now=clock)
    command.open([TABLE], 1024)
    refused = Upsert("orders", ('["a"]', "y"), {}, found.entry.version, ("a",))
    ways: Mapping[str, BaseException | Sequence[Rejection]] = {
        "refused in part": [Rejection(refused, "the target refuses it")],
        "no response": TransientError("no response"),
        "unfinished": Unfinished("it takes long"),
        "made read-only": ConfigError("one of its tables takes nothing any more"),
        "Ctrl-C": KeyboardInterrupt(),
    }
    command.how = ways[how]

    def meanwhile() -> None:
        clock.now += 400
        target.checkpoints.save([only(target).removal])  # a run healed the item

    command.meanwhile = meanwhile
    if how == "Ctrl-C":
        with pytest.raises(KeyboardInterrupt):
            retry(found, FIXED, command, MemoryCheckpoints(database), STATE, clock)
    else:
        assert retry(found, FIXED, command, MemoryCheckpoints(database), STATE, clock) == OVERTAKEN
    index.in_doubt.settle()
    run._pipeline.know(ParkedItems(run._pipeline.parked.retries))  # nothing is parked any more, as far as the run knows
    monotonic = Clock()
    watch = ParkedWatch(run._pipeline, run, 10, monotonic)
    monotonic.now += IDLE_INTERVAL
    watch.check()
    assert index.in_doubt, "the runs are told once more"
    left = known(target.checkpoints).dropped('["a"]')
    assert [("orders", "y") in one.leaves for one in left] == [True], "the item's next change removes what was written"


@pytest.mark.parametrize("epoch", [1024, 1025])
def test_a_run_that_a_command_overtakes_owes_a_sweep_only_for_changes_of_an_earlier_epoch(
    target: MemoryTarget, index: MemoryIndex, epoch: int
) -> None:
    park(target, "a", 7)
    item = only(target)
    run = following(index, target.checkpoints, replace(STATE, epoch=epoch))
    drop(item, MemoryCheckpoints(target._database))
    run._pipeline.unpark([item.id])
    run.flush()

    assert index.in_doubt
    assert index.in_doubt.begun_earlier == (epoch > 1024)


def test_while_an_epoch_begins_what_was_retried_before_is_of_an_earlier_one(
    target: MemoryTarget, index: MemoryIndex
) -> None:
    park(target, "a", 7)
    run = following(index, target.checkpoints)
    assert retry(only(target), AS_IS, MemoryIndex(target._database), MemoryCheckpoints(target._database), STATE) == ""
    run._pipeline.begin(replace(STATE, epoch=1025), Listing((Shard("s"),), True, "ENABLED", 0.0), {})
    run.know_parked()

    assert index.in_doubt.begun_earlier == 1


def removed(run: Delivery, count: int) -> None:
    """The run stores so many changes of the item, all removals."""
    records = [Record(("a",), str(n), 0.0) for n in range(1, count + 1)]
    run._pipeline.accept(Page("s", records, size=1))
    run.flush()


# documents with ids of their own


def tags(item: Item) -> Iterator[Document]:
    if "broken" in item:
        raise ValueError("broken")
    for tag in item["tags"]:
        yield Document(tag, {"tag": tag})


def tags_of_broken(item: Item) -> Iterator[Document]:
    for tag in item["tags"]:
        yield Document(tag, {"tag": tag})


BROKEN = DocumentMapping(Hook("tags", tags, "1", declared=True), ("orders",))
FIXED = DocumentMapping(Hook("tags", tags_of_broken, "2", declared=True), ("orders",))


def park_tags(target: MemoryTarget, new: list[str] | None, ordinal: int = 7, **how: object) -> ParkedItem:
    entry = Parked(
        key=("a",),
        version=version(1024, ordinal),
        reason="broken",
        parked=0.0,
        new=None if new is None else image({"tags": new, "broken": 1}).decode(),
        source=SOURCE,
        **how,  # type: ignore[arg-type]
    )
    save = Save("parked", f'["a"]@{entry.version:019d}', 0, encode(entry))
    read = sum(entry.changes.values()) or 1
    target.checkpoints.save([save], {SOURCE: Counts(read=read, parked=read)})
    return only(target)


def ids(database: MemoryDatabase) -> list[str]:
    return sorted(id[-1] for id in database.documents("orders"))


def hold(target: MemoryTarget, *tags: str) -> None:
    writes = [Upsert("orders", ('["a"]', tag), {"tag": tag}, version(1024, 1), ("a",)) for tag in tags]
    target.write(Batch([Part("other", writes, Counts(read=len(writes)))]))


def test_a_retry_removes_every_document_that_the_item_may_have_left(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    hold(target, "x", "y")
    found = park_tags(target, ["y"], leaves=(("orders", "x"), ("orders", "y")), changes={SOURCE: 3})

    assert retry(found, FIXED, target, target.checkpoints, replace(STATE, hook="2")) == ""
    assert ids(database) == ["y"]
    assert database.counts[SOURCE] == Counts(read=3, applied=3)
    assert [kind for kind, _ in database.entries] == ["pipeline", "retried"]


@pytest.mark.parametrize("tag", ["good", "fixed"])
def test_a_retry_replaces_what_the_refused_batch_had_stored_at_its_version(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex, tag: str
) -> None:
    """Without transactions a batch that is refused in part leaves the rest; by now the hook makes other documents."""
    own = ('["a"]', "good")
    stored = Upsert("orders", own, {"tag": "as it was"}, version(1024, 7), ("a",))
    index.write(Batch([Part("other", [stored], Counts(read=1))]))
    found = park_tags(target, [tag], leaves=(("orders", "good"), ("orders", "bad")))

    assert retry(found, FIXED, index, target.checkpoints, replace(STATE, hook="2")) == ""
    assert database.documents("orders") == {('["a"]', tag): {"tag": tag}}
    assert database.counts[SOURCE] == Counts(read=1, applied=1)


def test_a_retry_that_is_repeated_after_another_one_was_cut_off_replaces_what_that_stored(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """One document an item, too: the hook was changed in between."""
    park(target, "a", 7)
    first = DocumentMapping(Hook("plain", lambda item: {"by": "first"}, "1", declared=False), ("orders",))
    second = DocumentMapping(Hook("plain", lambda item: {"by": "second"}, "2", declared=False), ("orders",))
    index.write(retried(only(target), first, STATE))

    assert retry(only(target), second, index, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {("a",): {"by": "second"}}


def test_a_retry_with_another_hook_than_the_pipelines_notes_its_documents(target: MemoryTarget) -> None:
    found = park_tags(target, ["y"], leaves=())

    assert retry(found, FIXED, target, target.checkpoints, replace(STATE, hook="1")) == ""
    left = known(target.checkpoints).dropped('["a"]')
    assert [one.leaves for one in left] == [{("orders", "y")}]


def test_a_retry_with_another_hook_keeps_the_images_of_which_the_pipelines_may_have_stored_other_documents(
    target: MemoryTarget,
) -> None:
    base, other = (image({"tags": [tag]}).decode() for tag in ("x", "z"))
    found = park_tags(target, ["y"], leaves=(), base=base)
    further = Held(f'["a"]@{version(1024, 3):019d}', base=other)
    target.checkpoints.save([Save("dropped", further.id, 0, encode(Dropped((), other)))])
    beside = replace(found, dropped=(further,))

    assert retry(beside, FIXED, target, target.checkpoints, replace(STATE, hook="1")) == ""
    left = known(target.checkpoints).dropped('["a"]')
    assert {(one.base, one.leaves) for one in left} == {(base, frozenset({("orders", "y")})), (other, frozenset())}


def test_a_retry_needs_the_documents_of_an_image_that_an_earlier_hook_stored(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    hold(target, "x")
    base = image({"tags": ["x"], "broken": 1}).decode()
    found = park_tags(target, None, leaves=(), base=base)

    assert "raised ValueError" in retry(found, BROKEN, target, target.checkpoints, replace(STATE, hook="1"))
    assert retry(found, FIXED, target, target.checkpoints) == ""
    assert ids(database) == []


def test_a_retry_goes_by_the_hook_that_was_accepted_while_the_command_was_at_others(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """The command began when its hook was the pipeline's; by now that may not know what the command's hook makes."""
    store = Counting(database)
    found = park_tags(target, ["y"], leaves=())
    assert retry(found, FIXED, target, store, replace(STATE, hook="2")) == ""
    assert known(target.checkpoints).dropped('["a"]') == []

    found = park_tags(target, ["z"], leaves=())
    target.checkpoints.save([Save("pipeline", "", 1, encode(with_hook(STATE, "3")))])
    assert retry(found, FIXED, target, store) == ""
    left = known(target.checkpoints).dropped('["a"]')
    assert [one.leaves for one in left] == [{("orders", "z")}]
    assert (store.looks, store.images) == (0, 0), "thousands of items are retried one after the other"


@pytest.mark.parametrize("seconds", [1.0, 400.0])
def test_a_retry_that_was_suspended_as_it_wrote_notes_its_documents(
    database: MemoryDatabase, target: MemoryTarget, seconds: float
) -> None:
    """Another hook may have been accepted meanwhile."""
    clock, command = Clock(), Meanwhile(database)
    found = park_tags(target, ["y"], leaves=(("orders", "x"),))

    def suspended() -> None:
        clock.now += seconds

    command.meanwhile = suspended
    assert retry(found, FIXED, command, MemoryCheckpoints(database), replace(STATE, hook="2"), clock) == ""
    left = known(target.checkpoints).dropped('["a"]')
    assert [one.leaves for one in left] == ([] if seconds < 10 else [{("orders", "x"), ("orders", "y")}])


class Counting(MemoryCheckpoints):
    """Counts the parked images that are read, and the looks at all entries."""

    images = looks = 0

    def read(self) -> Claimed:
        self.looks += 1
        return super().read()

    def parked(self, prefix: str = "", ids: Collection[str] | None = None) -> Iterator[tuple[str, Parked]]:
        for found in super().parked(prefix, ids):
            self.images += 1
            yield found


def test_what_is_known_of_parked_items_is_read_once_and_then_what_changed(target: MemoryTarget) -> None:
    """A run looks every ten seconds, and all images together may be gigabytes."""
    for n in range(30):
        park(target, f"k{n}", n + 1)
    store = Counting(target._database)
    found = known(store, ParkedItems.among(store.read().entries))
    assert (len(found), store.images) == (30, 30)

    found = known(store, found)
    assert (len(found), store.images) == (30, 30)

    item = next(i for i in parked_items(target.checkpoints) if i.item == '["k4"]')
    noted = replace(item.entry, leaves=(("orders", "x"),))
    store.save([Save("parked", item.id, 1, encode(noted))])
    drop(next(i for i in parked_items(target.checkpoints) if i.item == '["k5"]'), target.checkpoints)
    found = known(store, found)
    assert (len(found), store.images) == (29, 31)
    k4 = found.parked('["k4"]')
    assert k4 is not None
    assert (k4.revision, k4.leaves) == (2, frozenset({("orders", "x")}))


def test_how_many_changes_an_item_was_parked_with_stays_known(target: MemoryTarget) -> None:
    """Of a run that begins, and behind a command that changed the entry: what is parked next of it adds to them."""
    item = park_tags(target, ["x"], changes={SOURCE: 3})
    found = known(target.checkpoints)
    assert found.parked('["a"]') == held(item.id, 1, item.entry)

    target.checkpoints.save([Save("parked", item.id, item.revision, encode(item.entry))])
    assert known(target.checkpoints, found).parked('["a"]') == held(item.id, 2, item.entry)


def test_a_sweep_knows_what_to_spare_without_any_image(target: MemoryTarget) -> None:
    store = Counting(target._database)
    park(target, "a", 1)
    park(target, "[", 2)
    long = "k" * 600
    change = Parked((long,), version(1024, 3), "because", 0.0)
    store.save([Save("parked", parked_id(change.key, change.version), 0, encode(change))])

    found = parked_keys(store)
    assert set(found.values()) == {("a",), ("[",), (long,)}
    assert store.images == 1, "of the key that is too long for an id"
    assert parked_keys(store, found) == found
    assert store.images == 1, "a sweep asks before each of its pieces"


def test_a_sweep_knows_the_key_of_a_discarded_item_whose_entrys_id_has_only_a_hash(target: MemoryTarget) -> None:
    long = "k" * 600
    change = Parked((long,), version(1024, 3), "because", 0.0)
    target.checkpoints.save([Save("parked", parked_id(change.key, change.version), 0, encode(change))])
    (item,) = parked_items(target.checkpoints)
    target.checkpoints.save(item.discarded(replace(STATE, resync=True)).saves)
    parked_now, discarded = kept_keys(target.checkpoints)
    assert (parked_now, list(discarded.values())) == ({}, [(long,)])


@pytest.mark.parametrize("reads", [1, 2])
def test_an_entry_that_a_worker_replaces_by_one_of_the_other_kind_during_a_read_is_seen_by_the_next_one(
    target: MemoryTarget, reads: int
) -> None:
    """Read page by page: the parked entries before that save, the discarded ones after it."""
    park(target, "a", 1)
    store = target.checkpoints
    (item,) = parked_items(store)
    store.save(item.discarded(replace(STATE, resync=True)).saves)
    before = store.read().entries
    (discarded,) = [entry for entry in before if entry.kind == "dropped"]
    store.save([Save("dropped", discarded.id, discarded.revision, None)])
    park(target, "a", 2)
    right, torn = store.read, [Claimed(1, [entry for entry in before if entry.kind != "dropped"])]
    store.read = lambda: torn.pop() if torn else right()  # type: ignore[method-assign]

    parked_now, discarded_now = kept_keys(store, reads=reads)
    assert set(parked_now.values()) | set(discarded_now.values()) == ({("a",)} if reads == 2 else set())


@pytest.mark.parametrize(
    ("state", "entries"),
    [
        (STATE, 0),
        (replace(STATE, resync=True), 1),
        (replace(STATE, stage="scanning"), 1),
    ],
)
def test_a_drop_leaves_an_entry_while_a_sweep_or_a_scanned_page_may_follow(
    target: MemoryTarget, state: PipelineState, entries: int
) -> None:
    target.checkpoints.save([Save("pipeline", "", None, encode(state))])
    park(target, "a", 1)
    assert drop(only(target), target.checkpoints) == ""
    assert len(known(target.checkpoints).all_dropped()) == entries


def test_a_drop_notes_what_the_item_left(target: MemoryTarget) -> None:
    found = park_tags(target, ["y"], leaves=(("orders", "x"),), changes={SOURCE: 2})

    assert drop(found, target.checkpoints) == ""
    left = known(target.checkpoints)
    assert (len(left), left.dropped('["a"]')) == (0, [Held(found.id, 1, frozenset({("orders", "x")}), discarded=True)])


def left_late(target: MemoryTarget, *tags: str) -> Held:
    """What a retry leaves that wrote late: the run had healed the item, and parked its next change afterwards."""
    leaves = tuple(("orders", tag) for tag in tags)
    id = parked_id(("a",), version(1024, 5))
    target.checkpoints.save([Save("dropped", id, 0, encode(Dropped(leaves)))])
    return Held(id, 1, frozenset(leaves))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("hook", ["1", "2"])
def test_a_retry_also_removes_what_a_late_one_left_beside_the_parked_entry(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex, hook: str, *, apart: bool
) -> None:
    hold(target, "x", "z")
    left_late(target, "z")
    park_tags(target, ["y"], leaves=(("orders", "x"),))

    where = index if apart else target
    assert retry(only(target), FIXED, where, target.checkpoints, replace(STATE, hook=hook)) == ""
    assert ids(database) == ["y"]
    left = [one.leaves for one in known(target.checkpoints).all_dropped()]
    assert left == ([] if hook == "2" else [{("orders", "y")}])


def test_a_retry_whose_entries_changed_since_they_were_listed_is_not_stored(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    late = left_late(target, "z")
    park_tags(target, ["y"], leaves=())
    found = only(target)
    target.checkpoints.save([Save("dropped", late.id, 1, encode(Dropped((("orders", "w"),))))])

    assert retry(found, FIXED, target, target.checkpoints, replace(STATE, hook="2")) == CHANGED
    assert ids(database) == []


def test_a_retry_saves_an_entry_once(target: MemoryTarget) -> None:
    """What a scan found is always of the same version, so the ids of both entries may be the same."""
    late = left_late(target, "z")
    found = park_tags(target, ["y"], ordinal=5, leaves=())
    assert found.id == late.id

    batch = retried(found, FIXED, replace(STATE, hook="1"))
    assert [(save.kind, save.text is None) for save in batch.saves] == [("parked", True), ("dropped", False)]


def test_a_retry_that_was_suspended_beside_an_earlier_ones_entry_notes_the_documents_of_both(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    clock, command = Clock(), Meanwhile(database)
    left_late(target, "z")
    park_tags(target, ["y"], leaves=(("orders", "x"),))

    def suspended() -> None:
        clock.now += 400

    command.meanwhile = suspended
    state = replace(STATE, hook="2")
    assert retry(only(target), FIXED, command, MemoryCheckpoints(database), state, clock) == ""
    (left,) = known(target.checkpoints).all_dropped()
    assert left.leaves == {("orders", tag) for tag in ("x", "y", "z")}


def test_a_drop_lists_in_one_entry_what_all_of_the_items_entries_left(target: MemoryTarget) -> None:
    left_late(target, "z")
    found = park_tags(target, ["y"], leaves=(("orders", "x"),))

    assert drop(only(target), target.checkpoints) == ""
    left = known(target.checkpoints).all_dropped()
    assert left == [Held(found.id, 1, frozenset({("orders", "x"), ("orders", "z")}), discarded=True)]


def test_a_drop_keeps_the_image_of_another_entry(target: MemoryTarget) -> None:
    late = left_late(target, "z")
    target.checkpoints.save([Save("dropped", late.id, 1, encode(Dropped((), base="{}")))])
    found = park_tags(target, ["y"], leaves=(("orders", "x"),))

    assert drop(only(target), target.checkpoints) == ""
    left = known(target.checkpoints).all_dropped()
    assert sorted((one.id, one.base) for one in left) == [(late.id, "{}"), (found.id, None)]


def test_an_items_next_change_removes_what_all_of_its_dropped_entries_list(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    hold(target, "x", "z")
    late = left_late(target, "z")
    other = parked_id(("a",), version(1024, 2))
    target.checkpoints.save([Save("dropped", other, 0, encode(Dropped((("orders", "x"),))))])
    found = known(target.checkpoints)
    assert {one.id for one in found.dropped('["a"]')} == {late.id, other}

    at = BatchContext({}, found, 1024, SOURCE, 0.0)
    change = Change(("a",), version(1024, 9), image({"tags": ["n"]}))
    compacted = compact_runs({change.key: [change]}, BROKEN, at)
    for move in compacted.moves:
        found.apply(move)
    assert found.all_dropped() == []
    for move in reversed(compacted.moves):
        found.undo(move)
    assert {one.id for one in found.all_dropped()} == {late.id, other}
    target.write(Batch([compacted.part(SOURCE)], compacted.saves))
    assert ids(database) == ["n"]
    assert known(target.checkpoints).all_dropped() == []


def test_an_image_that_a_parked_entry_keeps_is_kept_beside_a_dropped_one(target: MemoryTarget) -> None:
    """Only what a person dropped is given up."""
    late, base = left_late(target, "z"), image({"tags": ["x"], "broken": 1}).decode()
    parked_now = Held(parked_id(("a",), version(1024, 7)), 1, base=base, since=0.0)
    at = BatchContext({}, ParkedItems.of([parked_now], [late]), 1024, SOURCE, 0.0, mixed=True)
    change = Change(("a",), version(1024, 9), image({"tags": ["n"]}))
    compacted = compact_runs({change.key: [change]}, BROKEN, at)

    (kept,) = [move.value for move in compacted.moves if move.value is not None]
    assert kept.base == base
    assert set(kept.leaves or ()) == {("orders", "n"), ("orders", "z")}


def test_a_retry_in_two_places_notes_what_it_will_store_before_it_does(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that parks the item again at this moment fails to save it, reads the entry, and knows the documents."""
    found = park_tags(target, ["y"], leaves=(("orders", "x"),))
    monkeypatch.setattr(index, "write", lambda batch: fail("the connection broke"))
    with pytest.raises(TransientError):
        retry(found, FIXED, index, target.checkpoints, STATE)

    noted = known(target.checkpoints).parked('["a"]')
    assert noted is not None
    assert noted.revision == 2
    assert noted.leaves == {("orders", "x"), ("orders", "y")}


def fail(message: str) -> Outcome:
    raise TransientError(message)


def test_retrying_a_parked_removal_asks_the_hook_nothing(database: MemoryDatabase, target: MemoryTarget) -> None:
    plain = DocumentMapping(Hook("plain", lambda item: {"n": item["n"]}, "", declared=False), ("orders",))
    park(target, "a", 7)
    retry(only(target), plain, target, target.checkpoints, STATE)
    park(target, "a", 8, new=False)

    assert retry(only(target), plain, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {}


# a run beside a command


@pytest.mark.parametrize("transactional", [True, False])
def test_a_run_that_loses_to_a_command_reads_the_entries_again(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex, transactional: bool
) -> None:
    one = target if transactional else index
    checkpoints = target.checkpoints
    pipeline = Pipeline(BROKEN, checkpoints.claim(Owner("run", "here", 1, 0.0)))
    delivery = Delivery(one, checkpoints, pipeline, cast(RetryPolicy, lambda act, **_: act()), lambda: 0.0)
    state = replace(STATE, hook="1")
    pipeline.begin(state, Listing((Shard("s"),), True, "ENABLED", 0.0), {})
    delivery.flush()
    list(pipeline.openings())

    images: list[bytes | None] = [None]

    def read(n: int, new: list[str], **more: object) -> None:
        images.append(image({"tags": new, **more}))
        records = [Record(("a",), str(n), 0.0, images[-1], images[-2])]
        pipeline.accept(Page("s", records, size=1))
        delivery.flush()

    read(1, ["x"])
    read(2, ["y"], broken=1)
    assert len(pipeline.parked) == 1
    assert retry(only(target), FIXED, one, checkpoints, state) == ""
    assert len(pipeline.parked) == 1, "the run does not know it yet"
    read(3, ["z"])

    assert ids(database) == ["z"]
    assert len(pipeline.parked) == 0
    assert pipeline.shards["s"].ordinal == 3
    assert {kind for kind, _ in database.entries} == {"owner", "pipeline", "definition", "shard", "retried"}


def test_a_run_is_in_doubt_from_when_it_learns_that_a_command_sent_something(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex
) -> None:
    """A retry got no answer, and was repeated: the first request arrives when the run has removed the item again."""
    park(target, "a", 1)
    run, command = following(index, target.checkpoints), MemoryCheckpoints(database)
    item = only(target)
    assert retry(item, AS_IS, MemoryIndex(database), command, STATE) == ""
    assert not index.in_doubt
    run.know_parked()
    assert len(run._pipeline.parked) == 0

    removed(run, 2)
    database.volatile.clear()  # the server was restarted
    MemoryIndex(database).write(retried(item, AS_IS, STATE))
    assert database.documents("orders") == {}
    begun = index.in_doubt.begun
    run.know_parked()
    assert index.in_doubt.begun == begun, "nothing was sent since"


def test_another_run_that_took_over_still_ends_this_one(target: MemoryTarget) -> None:
    checkpoints = target.checkpoints
    pipeline = Pipeline(BROKEN, checkpoints.claim(Owner("run", "here", 1, 0.0)))
    delivery = Delivery(target, checkpoints, pipeline, cast(RetryPolicy, lambda act, **_: act()), lambda: 0.0)
    MemoryTarget(target._database).checkpoints.claim(Owner("other", "there", 2, 0.0))
    pipeline.begin(STATE, Listing((Shard("s"),), True, "ENABLED", 0.0), {})
    with pytest.raises(Fenced):
        delivery.flush()


def test_entries_that_others_replaced_while_the_checkpoints_were_read_page_by_page_are_not_refused(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """A page had the entry that was there before, and a later one the entry that took its place."""
    park(target, "a", 7)
    park(target, "a", 8)
    park(target, "b", 9)
    entries = target.checkpoints.read().entries
    del database.entries["parked", parked_id(("a",), version(1024, 7))]
    found = known(target.checkpoints, entries=entries)
    assert [item and item.id for item in map(found.parked, ('["a"]', '["b"]'))] == [
        parked_id(("a",), version(1024, 8)),
        parked_id(("b",), version(1024, 9)),
    ]


def test_several_entries_of_one_item_are_refused_and_retried_in_order(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """Earlier versions of replicator kept an entry for each parked change."""
    park(target, "a", 7)
    park(target, "a", 8)
    park(target, "b", 9)
    before = dict(database.entries)
    with pytest.raises(
        ConfigError, match=r'\["a"\] has several parked entries.*\(1 item\(s\) in all\).*parked retry CONFIG --all'
    ):
        known(target.checkpoints)
    assert database.entries == before

    for found in parked_items(target.checkpoints):
        assert retry(found, AS_IS, target, target.checkpoints, STATE) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 8}, ("b",): {"id": "b", "n": 9}}
    assert len(known(target.checkpoints)) == 0


class Interrupted(MemoryTarget):
    """A target during whose sweep something else happens, behind what the sweep has looked at."""

    meanwhile: Callable[[], str]
    swept = 0

    def sweep(self, table: Table, below: int, spare: Sequence[DocumentId]) -> int:
        done = super().sweep(table, below, spare)
        self.swept += 1
        if self.swept == 1:
            self.meanwhile()
        return done


def test_a_retry_that_began_before_a_resync_brings_nothing_back_behind_its_sweep(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    """The item was removed at the source meanwhile, so the scan of the new epoch does not replace it."""
    park(target, "gone", 7)
    found = only(target)
    swept = Interrupted(database)
    command = MemoryTarget(database)
    command.checkpoints.pipeline = lambda: STATE  # type: ignore[method-assign] # it looked before
    swept.meanwhile = lambda: retry(found, AS_IS, command, command.checkpoints, STATE)
    pipeline = Pipeline(AS_IS, target.checkpoints.claim(Owner("run", "here", 1, 0.0)))
    delivery = Delivery(swept, target.checkpoints, pipeline, cast(RetryPolicy, lambda act, **_: act()), lambda: 0.0)
    pipeline.begin(
        replace(STATE, epoch=1025, stage="sweeping", resync=True), Listing((Shard("s"),), True, "ENABLED", 0.0), {}
    )
    delivery.flush()
    delivery.know_parked()
    now = lambda: 0.0  # noqa: E731
    cleanup = Cleanup(
        swept,
        target.checkpoints,
        [TABLE],
        pipeline,
        delivery,
        cast(RetryPolicy, lambda act, **_: act()),
        now,
        now,
        None,
    )
    while cleanup.do():
        pass

    assert pipeline.state is not None
    assert pipeline.state.stage == "following"
    assert swept.swept >= 1
    assert database.documents("orders") == {}


# documents with ids of their own that a scan found


def park_scanned(target: MemoryTarget, **how: object) -> ParkedItem:
    """An item whose page waited while the stream brought a change of it, and was refused then."""
    hold(target, "now")
    return park_tags(target, ["before"], ordinal=0, **how)


def holding(tags: list[str] | None) -> SourceItems:
    return SourceItems(lambda key: None if tags is None else image({"tags": tags, "broken": 1}))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("current", [["now"], None])
def test_a_retry_does_not_store_a_scanned_item_that_the_source_no_longer_has(
    database: MemoryDatabase, target: MemoryTarget, index: MemoryIndex, current: list[str] | None, *, apart: bool
) -> None:
    found = park_scanned(target, leaves=(), changes={SOURCE: 2})
    where = index if apart else target

    assert retry(found, FIXED, where, target.checkpoints, STATE, source=holding(current)) == SUPERSEDED
    assert ids(database) == ["now"]
    assert database.counts[SOURCE] == Counts(read=2, superseded=2)
    left = known(target.checkpoints)
    assert (len(left), left.all_dropped()) == (0, [])


def test_what_a_superseded_item_may_have_left_goes_with_its_next_change(target: MemoryTarget) -> None:
    found = park_scanned(target, leaves=(("orders", "x"),))

    assert retry(found, FIXED, target, target.checkpoints, STATE, source=holding(["now"])) == SUPERSEDED
    assert known(target.checkpoints).dropped('["a"]') == [Held(found.id, 1, frozenset({("orders", "x")}))]


def test_a_retry_stores_what_a_scan_found_and_the_source_still_has(
    database: MemoryDatabase, target: MemoryTarget
) -> None:
    found = park_scanned(target, leaves=())

    assert retry(found, FIXED, target, target.checkpoints, STATE, source=holding(["before"])) == ""
    assert ids(database) == ["before", "now"]


def no_source(_: object) -> NoReturn:
    raise TransientError("the source is away")


def test_a_source_that_cannot_be_asked_leaves_the_item_parked(database: MemoryDatabase, target: MemoryTarget) -> None:
    found = park_scanned(target, leaves=())
    with pytest.raises(TransientError, match="the source is away"):
        retry(found, FIXED, target, target.checkpoints, STATE, source=SourceItems(no_source))
    reason = retry(found, FIXED, target, target.checkpoints, STATE, source=SourceItems(lambda key: b"{"))

    assert "cannot be compared with the source" in reason
    assert only(target) == found
    assert ids(database) == ["now"]


def test_an_item_that_a_run_changed_while_the_source_was_asked_is_looked_at_again(target: MemoryTarget) -> None:
    found = park_scanned(target, leaves=())

    def changes(_: object) -> None:
        target.checkpoints.save([found.removal])

    assert retry(found, FIXED, target, target.checkpoints, STATE, source=SourceItems(changes)) == CHANGED


def test_the_source_is_asked_about_nothing_else(target: MemoryTarget) -> None:
    """One document an item has its tombstone, and what the stream brought is newer than any scan."""
    never = SourceItems(no_source)
    assert retry(park_tags(target, ["y"], leaves=()), FIXED, target, target.checkpoints, STATE, source=never) == ""
    park(target, "a", 0)
    assert retry(only(target), AS_IS, target, target.checkpoints, STATE, source=never) == ""


class Pristine(MemoryIndex):
    """A target where the last write wins."""

    unguarded = True


@pytest.mark.parametrize("now", [8, None])
def test_without_versions_to_compare_a_retry_stores_only_what_the_source_still_has(
    database: MemoryDatabase, target: MemoryTarget, now: int | None
) -> None:
    index = Pristine(database)
    index.open([TABLE], 1024)
    park(target, "a", 7)
    current = None if now is None else image({"id": "a", "n": now})

    source = SourceItems(lambda key: current)
    assert retry(only(target), AS_IS, index, target.checkpoints, STATE, source=source) == SUPERSEDED
    assert database.documents("orders") == {}
    park(target, "a", 9)
    source = SourceItems(lambda key: image({"id": "a", "n": 9}))
    assert retry(only(target), AS_IS, index, target.checkpoints, STATE, source=source) == ""
    assert database.documents("orders") == {("a",): {"id": "a", "n": 9}}
    park(target, "a", 10, new=False)
    assert retry(only(target), AS_IS, index, target.checkpoints, STATE, source=SourceItems(lambda key: None)) == ""
    assert database.documents("orders") == {}


WHO = "process 1 on here, since 1970-01-01 00:16:40 UTC"
ENDED = Heartbeat(1000.0, "stopped", who=WHO)


@pytest.mark.parametrize(
    ("heartbeat", "waits"),
    [
        (Heartbeat(1000.0, "following", who=WHO), True),
        (Heartbeat(9e9, "following", who=WHO), True),  # of a machine whose clock is wrong
        (ENDED, False),
        (Heartbeat(0.0, "stopped", who="an earlier run"), True),
        (None, True),
    ],
    ids=["up", "in the future", "stopped", "just claimed", "without a heartbeat"],
)
@pytest.mark.parametrize("alive", [False, True])
def test_a_run_that_did_not_stop_cleanly_is_given_time_to_show_that_it_is_alive(
    target: MemoryTarget, heartbeat: Heartbeat | None, *, waits: bool, alive: bool
) -> None:
    store, waited = target.checkpoints, []
    store.claim(Owner("run", "here", 1, 1000.0))
    if heartbeat is not None:
        store.save([Save("pulse", "", None, encode(heartbeat))])

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if alive:
            store.save([Save("pulse", "", None, encode(Heartbeat(1.0, "following", who=WHO)))])

    no_run = parked.NoRun(store, wait)
    if waits and alive:
        with pytest.raises(ConfigError, match=r"a run of this pipeline is up.* Stop the run, retry, and start"):
            no_run.check()
    else:
        no_run.check()
    assert waited == ([15.0] if waits else [])


def test_a_retry_looks_for_a_run_every_few_seconds_and_not_for_each_item(target: MemoryTarget) -> None:
    store, monotonic = Counting(target._database), Clock()
    no_run = parked.NoRun(store, monotonic=monotonic)
    for _ in range(1000):
        no_run.check()
    assert store.looks == 1
    target.checkpoints.claim(Owner("run", "here", 1, 1000.0))
    monotonic.now += parked.CHECK_INTERVAL
    for _ in range(2):
        with pytest.raises(ConfigError, match="The remaining items were not changed"):
            no_run.check()


def test_a_pristine_table_is_one_without_versions() -> None:
    for pristine in (True, False):
        options = DynamoDBOptions.model_validate({"region": "eu-west-1", "pristine": pristine})
        assert parked.is_unguarded(cast(Target, DynamoDB(options, "p"))) is pristine
