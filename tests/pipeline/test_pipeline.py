"""The passive pipeline, driven by hand: what it hands out, and what must be stored before it hands out more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from msgspec import structs

from replicator import Document, documents
from replicator.batch import Batch, Delete, Outcome, Rejection, Upsert
from replicator.change import Listing, Page, Record, ScanPage, Shard
from replicator.checkpoints.contract import Claimed
from replicator.errors import Fenced, GapFound
from replicator.hooks.hook import DocumentMapping, Hook
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.pipeline import batching, stages
from replicator.pipeline.batching import SOURCE_PAGES
from replicator.pipeline.parked import Held, ParkedItems, item_of
from replicator.pipeline.pipeline import Pipeline
from replicator.state import (
    Counts,
    Entry,
    ExportState,
    Gap,
    Heartbeat,
    Parked,
    PipelineState,
    Repair,
    SegmentState,
    ShardState,
    decode,
)
from replicator.testing.contract.kit import owner
from replicator.testing.memory import MemoryCheckpoints, MemoryDatabase
from replicator.version import FIRST_EPOCH, version

NOW = 1000.0
FILING = DocumentMapping(None, ("orders",))


def begun(*shards: Shard, segments: int = 0, mapping: DocumentMapping = FILING, expired: bool = False) -> Pipeline:
    """A pipeline whose first epoch is stored."""
    pipeline = Pipeline(mapping, Claimed(1), ignore_expired=expired)
    stage = stages.SCANNING if segments else stages.FOLLOWING
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stage)
    pipeline.begin(state, Listing(shards, True, "ENABLED", NOW), stages.segments(segments))
    store(pipeline)
    return pipeline


def store(pipeline: Pipeline, outcome: Outcome | None = None) -> list[Batch]:
    """Store all there is to store."""
    found = []
    while (batch := pipeline.take(NOW)) is not None:
        found.append(batch)
        pipeline.stored(batch, outcome or Outcome(), NOW)
    return found


def record(sequence: int, key: str = "k", value: int | None = 1, *, expired: bool = False) -> Record:
    new = None if value is None else image({"pk": key, "v": value})
    return Record((key,), f"{sequence:021d}", NOW, new, None, expired)


def page(shard: str, *records: Record, ended: bool = False) -> Page:
    return Page(shard, records, ended, through=NOW, size=100)


def opened(pipeline: Pipeline) -> dict[str, ShardState]:
    return dict(pipeline.openings())


def writes(batches: list[Batch]) -> list[Upsert | Delete]:
    return [w for b in batches for part in b.parts for w in part.writes]


def values(batch: Batch, kind: str) -> Mapping[str, object]:
    return {s.id: decode(s.kind, s.id, s.text) for s in batch.saves if s.kind == kind and s.text is not None}


def test_nothing_is_read_before_the_positions_are_stored() -> None:
    pipeline = Pipeline(FILING, Claimed(1))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.SCANNING)
    pipeline.begin(state, Listing((Shard("a"),), True, "ENABLED", NOW), stages.segments(2))
    assert opened(pipeline) == {}
    assert list(pipeline.scans()) == []
    batch = pipeline.take(NOW)
    assert batch is not None
    assert opened(pipeline) == {}
    pipeline.stored(batch, Outcome(), NOW)
    assert list(opened(pipeline)) == ["a"]
    assert [n for n, _ in pipeline.scans()] == [0, 1]


def test_shards_that_were_closed_when_the_epoch_began_are_not_read() -> None:
    pipeline = begun(Shard("a", last="5"), Shard("b", "a"))
    assert list(opened(pipeline)) == ["b"]


def test_the_anchor_is_stored_before_the_first_write_that_uses_it() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(page("a", record(7)))
    first, second = store(pipeline)
    assert not first.parts
    anchored = values(first, "shard")["a"]
    assert isinstance(anchored, ShardState)
    assert (anchored.anchor, anchored.sequence) == (f"{7:021d}", None)
    assert [w.version for w in writes([second])] == [version(FIRST_EPOCH, 1)]


def test_a_batch_that_is_applied_late_is_rejected_because_its_entries_have_moved() -> None:
    """Even if an epoch started meanwhile that does not know the shard that the batch introduces."""
    database = MemoryDatabase()
    checkpoints = MemoryCheckpoints(database)
    pipeline = Pipeline(FILING, checkpoints.claim(owner("run")))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.FOLLOWING)

    def stored() -> Batch:
        batch = pipeline.take(NOW)
        assert batch is not None
        checkpoints.save(batch.saves)
        pipeline.stored(batch, Outcome(), NOW)
        return batch

    pipeline.begin(state, Listing((Shard("p"),), True, "ENABLED", NOW), {})
    stored()
    pipeline.listed(Listing((Shard("p", last="9"), Shard("c", "p", "10")), True, "ENABLED", NOW))
    late = stored()
    pipeline.begin(replace(state, epoch=FIRST_EPOCH + 1), Listing((Shard("d"),), True, "ENABLED", NOW), {})
    stored()

    with pytest.raises(Fenced):
        checkpoints.save(late.saves)


def test_positions_move_in_the_batch_that_holds_their_writes() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(page("a", record(7, "x"), record(8, "y")))
    _, batch = store(pipeline)
    moved = values(batch, "shard")["a"]
    assert isinstance(moved, ShardState)
    assert (moved.sequence, moved.ordinal, len(writes([batch]))) == (f"{8:021d}", 2, 2)


def test_a_child_opens_when_its_parents_end_is_stored_not_when_it_is_read() -> None:
    pipeline = begun(Shard("p"))
    opened(pipeline)
    pipeline.accept(page("p", record(1), record(2), ended=True))
    pipeline.listed(Listing((Shard("p", last="9"), Shard("c", "p", "10")), True, "ENABLED", NOW))
    anchor = pipeline.take(NOW)
    assert anchor is not None
    pipeline.stored(anchor, Outcome(), NOW)
    batch = pipeline.take(NOW)
    assert batch is not None
    assert opened(pipeline) == {}
    pipeline.stored(batch, Outcome(), NOW)
    assert {id: s.ordinal for id, s in opened(pipeline).items()} == {"c": 2}


def test_a_shard_that_is_gone_before_its_first_page_passes_its_parents_ordinals_on() -> None:
    """Its child's records are newer than those of its parent, whatever their numbers in the shard are."""
    pipeline = begun(Shard("p"))
    opened(pipeline)
    pipeline.listed(Listing((Shard("p", last="9"), Shard("c", "p", "10"), Shard("q")), True, "ENABLED", NOW))
    store(pipeline)
    pipeline.accept(page("p", record(1), record(2), ended=True))
    pipeline.discovery.not_found("c")
    for n in range(3):
        pipeline.listed(Listing((Shard("d", "c", "20"), Shard("q")), True, "ENABLED", NOW + n))
    assert not pipeline.shards["c"].ended, "its parent is not stored to its end"
    store(pipeline)
    pipeline.listed(Listing((Shard("d", "c", "20"), Shard("q")), True, "ENABLED", NOW + 3))
    store(pipeline)
    assert (pipeline.shards["c"].ended, pipeline.shards["c"].leaf) == (True, True)
    assert {id: s.ordinal for id, s in opened(pipeline).items() if id != "q"} == {"d": 2}


def test_a_batch_is_the_last_write_of_each_item_and_counts_all_changes() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(page("a", record(1, "x", 1), record(2, "y", 2), record(3, "x", 3)))
    pipeline.accept(page("a", record(4, "y", None)))
    written = writes(store(pipeline))
    assert [(type(w).__name__, w.id, w.version & 0xFF, w.weight) for w in written] == [
        ("Upsert", ("x",), 3, 2),
        ("Delete", ("y",), 4, 2),
    ]
    assert pipeline.total == Counts(read=4, applied=4)


def test_no_batch_has_an_item_of_two_shards() -> None:
    """As those of one lineage do that a listing left in the dark. Postgres changes no row twice in one statement."""
    pipeline = begun(Shard("a"), Shard("b"), Shard("c"))
    opened(pipeline)
    pipeline.accept(page("a", record(1, "x"), record(2, "y")))
    pipeline.accept(page("b", record(3, "z"), record(4, "y")))
    pipeline.accept(page("c", record(5, "u")))
    _, first, second = store(pipeline)
    assert [w.id for w in writes([first])] == [("x",), ("y",)]
    assert sorted(w.id for w in writes([second])) == [("u",), ("y",), ("z",)]
    assert pipeline.total.read == 5


def test_scanned_items_have_ordinal_0_and_the_cursor_moves_with_them() -> None:
    pipeline = begun(Shard("a"), segments=1)
    list(pipeline.scans())
    pipeline.accept_scan(ScanPage(0, [(("x",), image({"pk": "x"}))], cursor={"pk": {"S": "x"}}, size=10))
    (batch,) = store(pipeline)
    assert [w.version for w in writes([batch])] == [version(FIRST_EPOCH, 0)]
    assert values(batch, "segment")["0"] == SegmentState(1, '{"pk":{"S":"x"}}', items=1)
    assert batch.tombstones


def test_a_failed_scan_step_does_not_end_its_segment() -> None:
    pipeline = begun(Shard("a"), segments=1)
    list(pipeline.scans())
    pipeline.accept_scan(ScanPage(0, waiting_for="throttled"))
    assert store(pipeline) == []


def test_stages_follow_each_other_when_the_scan_is_stored() -> None:
    pipeline = begun(Shard("a"), segments=1)
    list(pipeline.scans())
    pipeline.accept_scan(ScanPage(0, ended_items()))
    store(pipeline)
    assert pipeline.state is not None
    assert pipeline.state.stage == stages.PURGING
    pipeline.cleanup_done(NOW)
    store(pipeline)
    assert pipeline.state.stage == stages.FOLLOWING


def ended_items() -> list[tuple[tuple[str, ...], bytes]]:
    return [(("x",), image({"pk": "x"}))]


def test_read_ahead_is_limited_per_source() -> None:
    pipeline = begun(Shard("a"), Shard("b"))
    opened(pipeline)
    for n in range(SOURCE_PAGES):
        assert pipeline.pages.room("shard:a")
        pipeline.accept(page("a", record(n + 1)))
    assert not pipeline.pages.room("shard:a")
    assert pipeline.pages.room("shard:b")
    (batch,) = [b for b in store(pipeline) if b.parts]
    assert [part.counts.read for part in batch.parts] == [SOURCE_PAGES]
    assert pipeline.pages.room("shard:a")


def test_refused_changes_are_parked_and_the_rest_is_written() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(page("a", record(1, "good"), record(2, "bad")))
    anchor = pipeline.take(NOW)
    assert anchor is not None
    pipeline.stored(anchor, Outcome(), NOW)
    batch = pipeline.take(NOW)
    assert batch is not None
    bad = next(w for w in writes([batch]) if w.id == ("bad",))
    pipeline.refused(batch, [Rejection(bad, "too large")])
    (again,) = store(pipeline)
    assert [w.id for w in writes([again])] == [("good",)]
    (parked,) = values(again, "parked").values()
    assert isinstance(parked, Parked)
    assert (parked.key, parked.reason, parked.version) == (("bad",), "too large", version(FIRST_EPOCH, 2))
    assert pipeline.total == Counts(read=2, applied=1, parked=1)


@pytest.mark.parametrize("own_ids", [False, True])
def test_a_delete_whose_last_document_is_refused_goes_without_it(own_ids: bool) -> None:
    """It marks what is stored, and nothing is parked; not so if that is refused too."""
    hook = Hook("hook", documents(lambda item: [Document("d", item)]), "", True) if own_ids else None
    pipeline = begun(Shard("a"), mapping=DocumentMapping(hook, ("orders",), frozenset({"orders"})))
    opened(pipeline)
    pipeline.accept(page("a", Record(("k",), "1", NOW, None, image({"pk": "k", "v": 1}))))
    anchor = pipeline.take(NOW)
    assert anchor is not None
    pipeline.stored(anchor, Outcome(), NOW)
    for kept in (True, False):
        batch = pipeline.take(NOW)
        assert batch is not None
        (delete,) = writes([batch])
        assert isinstance(delete, Delete)
        assert (delete.last is not None) == kept
        pipeline.refused(batch, [Rejection(delete, "no")])
    (parked,) = values(store(pipeline)[0], "parked").values()
    assert isinstance(parked, Parked)


def test_batches_taken_after_a_refused_one_are_returned_too() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(page("a", record(1, "x")))
    anchor = pipeline.take(NOW)
    assert anchor is not None
    pipeline.stored(anchor, Outcome(), NOW)
    first = pipeline.take(NOW)
    pipeline.accept(page("a", record(2, "y")))
    second = pipeline.take(NOW)
    assert first is not None
    assert second is not None
    pipeline.refused(first, [Rejection(writes([first])[0], "no")])
    again = store(pipeline)
    assert [[w.id for part in b.parts for w in part.writes] for b in again] == [[], [("y",)]]
    assert [s.expected for b in again for s in b.saves if s.kind == "shard"] == [2, 3]


def test_a_refused_item_is_parked_however_many_writes_its_neighbors_produce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Returned pages go first, as the same batch, and another stored batch is no reason to retry them."""
    monkeypatch.setattr(batching, "BATCH_ROWS", 2)
    pipeline = begun(Shard("a"), Shard("b"))
    opened(pipeline)
    ordinals, tries = {"a": 0, "b": 0}, 0

    def read(shard: str, *keys: str) -> None:
        first = ordinals[shard] + 1
        ordinals[shard] += len(keys)
        pipeline.accept(page(shard, *(record(n, key) for n, key in enumerate(keys, start=first))))

    read("a", "bad", "a1")
    for n in range(6):
        read("b", f"b{n}", f"c{n}")
        batch = pipeline.take(NOW)
        if batch is None:
            continue
        refused = [Rejection(w, "no") for w in writes([batch]) if w.id == ("bad",)]
        tries += len(refused)
        if refused:
            pipeline.refused(batch, refused)
        else:
            pipeline.stored(batch, Outcome(), NOW)
    assert (tries, len(pipeline.parked), pipeline.shards["a"].ordinal) == (1, 1, 2)


def test_a_shard_with_a_known_anchor_does_not_keep_others_from_getting_theirs() -> None:
    pipeline = begun(Shard("a"), Shard("b"))
    opened(pipeline)
    pipeline.accept(page("a", record(1)))
    store(pipeline)
    pipeline.accept(page("a", record(2)))
    pipeline.accept(page("b", record(1)))
    first = pipeline.take(NOW)
    assert first is not None
    assert (first.parts, [s.id for s in first.saves if s.kind == "shard"]) == ([], ["b"])


def test_another_sweep_is_due_once_an_item_that_the_last_one_spared_is_no_longer_parked() -> None:
    hook = Hook("many", lambda item: [], "", declared=True)
    pipeline = begun(Shard("a"), mapping=DocumentMapping(hook, ("orders",)))
    opened(pipeline)
    entry = Held(f'["x"]@{version(FIRST_EPOCH, 1):019d}')
    pipeline.know(ParkedItems.of([entry]))
    pipeline.swept(['["x"]'])
    store(pipeline)
    assert not pipeline.owes_sweep
    pipeline.know(ParkedItems.of([], [replace(entry, discarded=True)]))
    assert not pipeline.owes_sweep, "what is discarded stays as it is until the item's next change"
    pipeline.know(ParkedItems.of([], [entry]))
    assert pipeline.owes_sweep, "a retry left it"
    pipeline.know(ParkedItems())
    assert pipeline.owes_sweep
    pipeline.swept([])
    (batch,) = store(pipeline)
    assert [(s.id, s.text) for s in batch.saves if s.kind == "spared"] == [('["x"]', None)]
    assert not pipeline.owes_sweep


def test_a_later_good_change_heals_a_parked_item() -> None:
    def picky(item: Item) -> Mapping[str, object]:
        return {"v": 10 // int(item["v"])}

    pipeline = begun(Shard("a"), mapping=DocumentMapping(Hook("picky", picky, "", declared=False), ("orders",)))
    opened(pipeline)
    pipeline.accept(page("a", record(1, "x", 0)))
    store(pipeline)
    assert len(pipeline.parked) == 1
    pipeline.accept(page("a", record(2, "x", 5)))
    (batch,) = store(pipeline)
    assert [(item_of(s.id), s.text) for s in batch.saves if s.kind == "parked"] == [('["x"]', None)]
    assert len(pipeline.parked) == 0


def test_an_item_that_two_shards_park_or_heal_in_one_batch_is_saved_once() -> None:
    """As after a listing without the shard between the two: a save that expects what the batch itself stores fails,
    each time that it is tried again.
    """

    def picky(item: Item) -> Mapping[str, object]:
        return {"v": 10 // int(item["v"])}

    checkpoints = MemoryCheckpoints(MemoryDatabase())
    claimed = checkpoints.claim(owner("run"))
    pipeline = Pipeline(DocumentMapping(Hook("picky", picky, "", declared=False), ("orders",)), claimed)

    def stored() -> None:
        while (batch := pipeline.take(NOW)) is not None:
            checkpoints.save(batch.saves)
            pipeline.stored(batch, Outcome(), NOW)

    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.FOLLOWING)
    pipeline.begin(state, Listing((Shard("a"), Shard("b")), True, "ENABLED", NOW), {})
    stored()
    opened(pipeline)
    for sequence, (one, other) in enumerate([(1, 1), (0, 0), (0, 0), (1, 0), (0, 1), (1, 1)], start=1):
        for shard, value in (("a", one), ("b", other)):
            pipeline.accept(page(shard, record(sequence, "x", value)))
        stored()
        assert [(held.id, held.revision) for held in pipeline.parked.all_parked] == [
            (e.id, e.revision) for e in checkpoints.read().entries if e.kind == "parked"
        ]


def test_expiries_can_be_ignored_and_are_counted_as_filtered() -> None:
    pipeline = begun(Shard("a"), expired=True)
    opened(pipeline)
    pipeline.accept(page("a", record(1, "x", 1), record(2, "x", None, expired=True)))
    written = writes(store(pipeline))
    assert [(type(w).__name__, w.version & 0xFF) for w in written] == [("Upsert", 1)]
    assert pipeline.total == Counts(read=2, applied=1, filtered=1)


def test_a_gap_is_recorded_with_shard_time_and_reason() -> None:
    pipeline = begun(Shard("a"))
    pipeline.gap(GapFound("trimmed", "a", "17"), NOW)
    (batch,) = store(pipeline)
    assert values(batch, "gap") == {"0000000001000.000": Gap("trimmed", NOW, FIRST_EPOCH, "a", "17")}


def test_idle_shards_are_stored_with_the_heartbeat() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(Page("a", through=NOW + 5))
    pipeline.heartbeat(Heartbeat(NOW, "live"))
    (batch,) = store(pipeline)
    state = values(batch, "shard")["a"]
    assert isinstance(state, ShardState)
    assert state.through == NOW + 5


def test_a_first_page_that_failed_leaves_the_lag_unknown() -> None:
    """Otherwise the lag would be counted from 1970, and no retention would be left."""
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(Page("a", since=NOW + 5, waiting_for="throttled"))
    assert pipeline.seen()["a"].through is None
    pipeline.heartbeat(Heartbeat(NOW, "live"))
    (batch,) = store(pipeline)
    state = values(batch, "shard")["a"]
    assert isinstance(state, ShardState)
    assert (state.through, state.since) == (None, NOW + 5)


def test_a_restart_resumes_from_the_stored_entries() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(page("a", record(1), record(2)))
    batches = [begin_entries(), *store(pipeline)]
    again = Pipeline(FILING, claimed(batches))
    assert {id: (s.sequence, s.ordinal) for id, s in opened(again).items()} == {"a": (f"{2:021d}", 2)}


def begin_entries() -> Batch:
    pipeline = Pipeline(FILING, Claimed(1))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.FOLLOWING)
    pipeline.begin(state, Listing((Shard("a"),), True, "ENABLED", NOW), {})
    batch = pipeline.take(NOW)
    assert batch is not None
    return batch


def claimed(batches: list[Batch]) -> Claimed:
    entries: dict[tuple[str, str], Entry] = {}
    for save in (s for b in batches for s in b.saves):
        before = entries.pop((save.kind, save.id), None)
        assert save.expected in (None, before.revision if before else 0)
        if save.text is not None:
            entries[save.kind, save.id] = Entry(save.kind, save.id, (before.revision if before else 0) + 1, save.text)
    return Claimed(1, list(entries.values()))


def test_an_empty_page_says_nothing_of_the_age_of_records_that_follow_it() -> None:
    """They may be of before the epoch; then those after them may be trimmed sooner, which a later run must know."""
    pipeline = begun(Shard("a"))
    opened(pipeline)
    pipeline.accept(Page("a", since=NOW))
    pipeline.accept(
        Page("a", [structs.replace(record(7), created=NOW - 500)], through=NOW - 500, size=100, since=NOW - 500)
    )
    store(pipeline)
    pipeline.heartbeat(Heartbeat(NOW, "live"))
    store(pipeline)
    assert pipeline.shards["a"].since == NOW - 500


def test_caught_up_needs_every_shard_read_and_listed_since() -> None:
    pipeline = begun(Shard("a"))
    opened(pipeline)
    since = NOW + 1
    pipeline.accept(Page("a", through=since + 1))
    assert not pipeline.caught_up(since)
    pipeline.listed(Listing((Shard("a"),), True, "ENABLED", since + 1))
    assert pipeline.caught_up(since)


def test_after_the_clock_is_set_back_shards_read_and_listed_in_the_future_must_be_seen_again() -> None:
    before = begun(Shard("a"))
    opened(before)
    before.accept(Page("a", through=NOW + 3600))
    before.listed(Listing((Shard("a"),), True, "ENABLED", NOW + 3600))
    before.heartbeat(Heartbeat(NOW, "live"))
    stored = claimed([*_first(Shard("a")), *store(before)])

    assert Pipeline(FILING, stored, now=NOW + 3601).caught_up(NOW)
    assert not Pipeline(FILING, stored, now=NOW).caught_up(NOW)


@pytest.mark.parametrize(("read", "listed"), [(NOW + 3600, NOW), (NOW, NOW + 3600)])
def test_read_and_listed_times_in_the_future_are_each_discarded_separately(read: float, listed: float) -> None:
    before = begun(Shard("a"))
    opened(before)
    before.accept(Page("a", through=read))
    before.listed(Listing((Shard("a"),), True, "ENABLED", listed))
    before.heartbeat(Heartbeat(NOW, "live"))
    stored = claimed([*_first(Shard("a")), *store(before)])

    assert Pipeline(FILING, stored, now=NOW + 3601).caught_up(NOW)
    later = Pipeline(FILING, stored, now=NOW)
    assert later.shards["a"].through == (None if read > NOW else NOW)
    assert later.discovery.listed == (None if listed > NOW else NOW)
    assert not later.caught_up(NOW)


def resumed(started: float, export: ExportState | None = None, now: float = NOW + 60) -> Pipeline:
    """A process that takes over an epoch whose beginning alone is stored, before a heartbeat tells of a listing."""
    before = Pipeline(FILING, Claimed(1))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.FOLLOWING, started=started, export=export)
    before.begin(state, Listing((Shard("a"),), True, "ENABLED", NOW), {})
    return Pipeline(FILING, claimed(store(before)), now=now)


def test_a_process_that_takes_over_as_an_epoch_begins_needs_nothing_older_than_that() -> None:
    pipeline = resumed(started=NOW - 5)
    pipeline.listed(Listing((Shard("a"), Shard("late")), True, "ENABLED", NOW + 70))
    store(pipeline)
    assert pipeline.shards["late"].since == NOW - 5


def listed_late(pipeline: Pipeline, at: float) -> float:
    """Since when the records of a shard are needed that a listing of that time shows first."""
    pipeline.listed(Listing((Shard("a"), Shard("late")), True, "ENABLED", at))
    store(pipeline)
    return pipeline.shards["late"].since


def test_an_epochs_beginning_in_the_future_proves_nothing_of_shards() -> None:
    """A clock that another process had may be ten minutes ahead of this one: AWS tolerates five on both sides."""
    assert listed_late(resumed(started=NOW), NOW - 601) == 0
    assert listed_late(resumed(started=NOW), NOW - 599) == NOW


def test_a_clock_that_was_wrong_as_the_process_began_does_not_matter_once_a_listing_was_answered() -> None:
    pipeline = resumed(started=NOW - 5, now=NOW - 3600)
    assert not pipeline.caught_up(NOW - 3600), "the epoch's beginning is no listing"
    assert listed_late(pipeline, NOW + 70) == NOW - 5


@pytest.mark.parametrize("takes_over", [False, True])
def test_what_an_epoch_copies_from_an_existing_export_is_needed_since_the_time_of_that(takes_over: bool) -> None:
    export = ExportState("arn", NOW - 600)
    if takes_over:
        assert listed_late(resumed(NOW - 5, export), NOW + 70) == NOW - 600
        return
    pipeline = Pipeline(FILING, Claimed(1))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.SCANNING, started=NOW - 5, export=export)
    pipeline.begin(state, Listing((Shard("a"),), True, "ENABLED", NOW), stages.segments(1))
    assert pipeline.discovery.listed == NOW - 600


def _first(*shards: Shard) -> list[Batch]:
    """The batches that ``begun`` stores."""
    pipeline = Pipeline(FILING, Claimed(1))
    state = PipelineState(FIRST_EPOCH, "stream", "table", "id", stages.FOLLOWING)
    pipeline.begin(state, Listing(shards, True, "ENABLED", NOW), {})
    return store(pipeline)


@pytest.mark.parametrize("ended", [False, True])
def test_deletes_leave_tombstones_while_a_command_inserts_documents(ended: bool) -> None:
    """It may insert what it read before a delete: only a tombstone keeps that from coming back."""
    pipeline = begun(Shard("a"))
    opened(pipeline)
    known = ParkedItems()
    known.repair = Repair("token", ended=ended), 1
    pipeline.know(known)
    pipeline.accept(page("a", record(7, value=None)))
    *_, batch = store(pipeline)
    assert [type(write) for write in writes([batch])] == [Delete]
    assert batch.tombstones == (not ended)
