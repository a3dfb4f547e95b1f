"""Outcomes of batches, conflicts, sweeps and purges, against an in-memory engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from connectors.search import searches
from connectors.search.bulk import SMALLEST, Bulk, Size
from connectors.search.catalog import Index, State
from connectors.search.conflicts import _LOOKED_UP, STRIKES, Conflicts, Progress
from connectors.search.encode import Entry, TableEncoder, encode
from connectors.search.layout import Layout, layouts
from connectors.search.options import SearchOptions
from connectors.search.searches import forgotten, swept
from connectors.search.target import SearchTarget
from connectors.search.writer import Writer
from replicator.batch import Batch, Delete, Outcome, Upsert
from replicator.errors import ConfigError, TransientError
from replicator.target.acks import place
from replicator.target.contract import Table
from replicator.target.in_doubt import InDoubtWindow
from replicator.testing.contract.kit import PAIR, PK, at, batch, put, remove
from replicator.version import FIRST_EPOCH, version
from tests.connectors.search.search_engine import Engine, Stored

TABLE = Table("contract", PK)


class Copy:
    """Writes batches to the engine, without the rest of the target."""

    def __init__(self, engine: Engine, table: Table = TABLE) -> None:
        self.layouts: Mapping[str, Layout] = layouts([table])
        self.in_doubt = InDoubtWindow()
        self.conflicts = Conflicts(engine)
        self.conflicts.epoch = FIRST_EPOCH
        self._writing = Writer(Bulk(engine, Size(8 << 20, 1000), 1), self.in_doubt, self.conflicts, lambda *_: [])
        self._writing.layouts = self.layouts

    def write(self, written: Batch) -> Outcome:
        encoders = {name: TableEncoder(layout) for name, layout in self.layouts.items()}
        self._writing.send(encode(written, encoders))
        return self._writing.collect()


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def copy(engine: Engine) -> Copy:
    return Copy(engine)


STALE = Outcome(superseded={"shard:contract": 1})


def test_a_retry_replaces_what_is_there_at_its_own_version_and_nothing_newer(engine: Engine, copy: Copy) -> None:
    copy.in_doubt.begin()
    copy.write(batch(put({"pk": "a", "n": 1}, 5), put({"pk": "b"}, 5), put({"pk": "c"}, 6)))
    writes = put({"pk": "a", "n": 2}, 5), remove("b", 5), remove("c", 5)

    assert copy.write(Batch(batch(*writes).parts, replaces_same=True)) == STALE
    assert engine.ids() == {"a": at(5), "b": None, "c": at(6)}
    assert engine.documents["a", None].value("document.n") == 2


def test_a_batch_whose_marks_cannot_be_read_sends_nothing(engine: Engine) -> None:
    """A request in flight that nothing waits for might be applied after the next batch."""
    asked: list[str] = []

    class Asked(Bulk):
        def start(self, layout: Layout, lines: Sequence[bytes]) -> Any:
            asked.append(f"write {layout.index}")
            return super().start(layout, lines)

    def read(layout: Layout, _: object) -> Sequence[Any]:
        asked.append(f"read {layout.index}")
        if len(asked) == 2:
            raise TransientError("a shard fails")
        return [None]

    tables = [Table(name, PK, {"deletes": "mark"}) for name in ("one", "two")]
    encoders = {name: TableEncoder(layout) for name, layout in layouts(tables).items()}
    writing = Writer(Asked(engine, Size(8 << 20, 1000), 1), InDoubtWindow(), Conflicts(engine), read)
    writing.layouts = layouts(tables)
    encoded = encode(batch(*(Delete(table.name, ("a",), at(5), ("a",)) for table in tables)), encoders)
    with pytest.raises(TransientError, match="a shard fails"):
        writing.send(encoded)
    assert asked == ["read one-1", "read two-1"]
    writing.send(encoded)
    assert asked[2:] == ["read one-1", "read two-1", "write one-1", "write two-1"]


# lost responses and conflicts


def lose(engine: Engine, copy: Copy, *writes: Upsert | Delete) -> None:
    """Write a batch that is stored but whose response is lost."""
    engine.lost = True
    with pytest.raises(TransientError):
        copy.write(batch(*writes))
    engine.lost = False


def test_a_write_whose_response_was_lost_counts_as_applied(engine: Engine, copy: Copy) -> None:
    lose(engine, copy, put({"pk": "a"}, 1))
    assert engine.ids() == {"a": at(1)}
    assert copy.in_doubt
    assert copy.write(batch(put({"pk": "a"}, 1))) == Outcome()
    assert copy.write(batch(put({"pk": "a"}, 1))) == STALE


def test_a_write_of_another_run_is_superseded_even_at_the_same_version(engine: Engine, copy: Copy) -> None:
    copy.write(batch(put({"pk": "a"}, 1)))
    assert Copy(engine).write(batch(put({"pk": "a"}, 1))) == STALE


def test_in_doubt_a_delete_that_the_engine_only_remembers_gets_a_tombstone(engine: Engine, copy: Copy) -> None:
    """Once the engine forgets the delete, a late older request would bring the document back."""
    engine.remembered["a", None] = at(2)
    copy.in_doubt.begin()
    assert copy.write(batch(remove("a", 2))) == Outcome()
    assert engine.ids() == {"a": None}


def test_no_tombstone_replaces_a_newer_document(engine: Engine, copy: Copy) -> None:
    copy.write(batch(put({"pk": "a"}, 3)))
    copy.in_doubt.begin()
    assert copy.write(batch(remove("a", 2))) == STALE
    assert engine.ids() == {"a": at(3)}


def entry(write: Upsert | Delete, layout: Layout) -> Entry:
    (found,) = encode(batch(write), {layout.alias: TableEncoder(layout)}).tables[layout.alias]
    return found


def ours(
    engine: Engine, writes: Sequence[Upsert | Delete], lost: Sequence[Upsert | Delete], epoch: int = FIRST_EPOCH
) -> set[str]:
    """The ids of the conflicting writes that count as this run's own. ``lost``: those whose response was lost."""
    conflicts, progress, of = Conflicts(engine), Progress(), layouts([TABLE])
    conflicts.epoch = epoch
    progress.lost = {place(write) for write in lost}
    found = conflicts.ours([entry(write, of["contract"]) for write in writes], progress, of)
    return {id[0] for _, id, _ in found}


def test_a_lost_write_is_ours_if_it_is_what_is_stored(engine: Engine) -> None:
    engine.documents = {("same", None): Stored(at(2), {}), ("newer", None): Stored(at(3), {})}
    writes: list[Upsert | Delete] = [
        put({"pk": "same"}, 2),
        put({"pk": "newer"}, 2),
        put({"pk": "absent"}, 2),
        remove("gone", 2),
    ]
    assert ours(engine, writes, writes) == {"same", "gone"}
    assert ours(engine, writes, []) == set()
    assert ours(engine, [remove("newer", 2)], [remove("newer", 2)]) == set()


def test_every_lost_write_is_looked_up_and_a_sample_of_the_others(engine: Engine) -> None:
    engine.documents = {(f"{n}", None): Stored(at(1), {}) for n in range(3 * _LOOKED_UP)}
    writes = [put({"pk": str(n)}, 1) for n in range(3 * _LOOKED_UP)]
    assert len(ours(engine, writes, writes)) == 3 * _LOOKED_UP
    engine.documents["0", None] = Stored(at(0, FIRST_EPOCH + 1), {})
    with pytest.raises(ConfigError, match=r"document 0 in contract-1 has version \d+, higher than any"):
        ours(engine, writes, [])


def test_a_version_of_this_runs_epoch_is_not_foreign(engine: Engine) -> None:
    """A retry of parked changes writes with versions of an earlier epoch."""
    engine.documents = {("a", None): Stored(at(9, FIRST_EPOCH + 1), {})}
    assert ours(engine, [put({"pk": "a"}, 1)], [], FIRST_EPOCH + 1) == set()
    with pytest.raises(ConfigError, match=f"its epoch is {FIRST_EPOCH}"):
        ours(engine, [put({"pk": "a"}, 1)], [])


def test_a_version_of_the_batchs_highest_epoch_is_not_foreign(engine: Engine) -> None:
    engine.documents = {(pk, None): Stored(at(0, FIRST_EPOCH + 1), {}) for pk in "ab"}
    later = Delete("contract", ("b",), at(0, FIRST_EPOCH + 1), ("b",))
    assert ours(engine, [put({"pk": "a"}, 1), later], []) == set()


def test_an_adopted_index_may_hold_higher_versions(engine: Engine) -> None:
    engine.documents = {("a", None): Stored(at(9, FIRST_EPOCH + 1), {})}
    adopted = Copy(engine, Table("contract", PK, {"adopt": True}))
    assert adopted.write(batch(put({"pk": "a"}, 1))) == STALE
    with pytest.raises(ConfigError, match="another tool, or a later run, writes to the index"):
        Copy(engine).write(batch(put({"pk": "a"}, 1)))


@pytest.mark.parametrize(("routing", "shard"), [("pk", "a#x"), ("before(pk, '#')", "a"), ("before(pk, '+')", "a#x")])
def test_documents_are_looked_up_by_their_routing(engine: Engine, routing: str, shard: str) -> None:
    copy = Copy(engine, Table("contract", PAIR, {"routing": routing}))
    lose(engine, copy, put({"pk": "a#x", "sk": 1}, 1, id=("a#x", "1")))
    assert list(engine.documents) == [("a#x|1", shard)]
    assert copy.write(batch(put({"pk": "a#x", "sk": 1}, 1, id=("a#x", "1")))) == Outcome()
    assert list(engine.documents) == [("a#x|1", shard)]


# documents that the engine has no room for


BUSY = (429, "es_rejected_execution_exception")
ROOM = "replicator-is-there-room"


def heavy(pk: str) -> Upsert:
    return put({"pk": pk, "note": "x" * SMALLEST}, 1)


def attempts(copy: Copy, written: Batch, most: int = 3 * STRIKES) -> tuple[int, list[str]]:
    """The number of failed attempts before an outcome, and the refused ids; ``most`` and none without an outcome."""
    for waits in range(most):
        try:
            return waits, [rejection.write.id[0] for rejection in copy.write(written).rejections]
        except TransientError:
            continue
    return most, []


def test_a_large_document_is_refused_if_only_it_finds_no_room(engine: Engine, copy: Copy) -> None:
    engine.failing["a"] = BUSY
    assert attempts(copy, batch(heavy("a"))) == (STRIKES - 1, ["a"])


@pytest.mark.parametrize(
    ("failing", "writes"),
    [
        ([ROOM, "a"], [heavy("a")]),
        (["a"], [put({"pk": "a"}, 1)]),
        (["a"], [put({"pk": "a"}, 1), put({"pk": "b"}, 1)]),
        (["a", "b"], [heavy("a"), put({"pk": "b"}, 1)]),
    ],
    ids=["no room for anything", "a small one", "a small one beside others", "a large one and a small one"],
)
def test_otherwise_the_batch_waits_for_room(
    engine: Engine, copy: Copy, failing: Sequence[str], writes: Sequence[Upsert | Delete]
) -> None:
    engine.failing = dict.fromkeys(failing, BUSY)
    assert attempts(copy, batch(*writes))[1] == []
    engine.failing.clear()
    assert copy.write(batch(*writes)) == Outcome()


def test_large_documents_are_sent_alone_before_they_are_refused(engine: Engine, copy: Copy) -> None:
    engine.failing = {"a": BUSY, "b": BUSY}
    waits, refused = attempts(copy, batch(heavy("a"), heavy("b")), most=30)
    assert waits >= STRIKES
    assert refused == ["a", "b"]


# sweep and purge


def document(ordinal: int, deleted: bool = False, epoch: int = FIRST_EPOCH, **key: str) -> Stored:
    own: dict[str, Any] = {"version": at(ordinal, epoch), **(key or {"partition": "k"})}
    return Stored(own["version"], {"replicator": own | ({"deleted": True} if deleted else {}), "document": {}})


def removed(engine: Engine, table: Table, how: Any, *arguments: Any) -> int:
    """Run a sweep or purge to its end and return how many lines it sent, all of which must be stored."""
    (layout,) = layouts([table]).values()
    count = 0
    for _ in range(10):
        piece = how(engine, layout, *arguments)
        if not piece.lines:
            return count
        verdicts = Bulk(engine, Size(8 << 20, 1000), 1).together(layout, piece.lines)
        assert {verdict.kind for verdict in verdicts} <= {"stored"}
        count += len(verdicts)
    raise AssertionError("it found no end")


BELOW = version(FIRST_EPOCH + 1, 0)


def test_a_sweep_replaces_only_older_documents_by_tombstones(engine: Engine) -> None:
    engine.documents = {
        ("old", None): document(5),
        ("deleted", None): document(5, deleted=True),
        ("confirmed", None): document(0, epoch=FIRST_EPOCH + 1),
        ("changed", None): document(7, epoch=FIRST_EPOCH + 1),
    }
    before = dict(engine.documents)
    assert removed(engine, TABLE, swept, BELOW, []) == 1
    own = {"version": BELOW, "partition": "k", "deleted": True}
    assert engine.documents == before | {("old", None): Stored(BELOW, {"replicator": own})}


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_a_sweep_spares_documents_and_all_of_an_item(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(searches, "_TERMS", at_once)
    keys = [(pk, sk) for pk in "abcd" for sk in "123"]
    engine.documents = {(f"{pk}|{sk}", None): document(1, partition=pk, sort=sk) for pk, sk in keys}
    spare = [("a", "1"), ("a", "3"), ("b", "2"), ("c",)]
    assert removed(engine, Table("contract", PAIR), swept, BELOW, spare) == 6
    assert {id for id, found in engine.ids().items() if found} == {"a|1", "a|3", "b|2", "c|1", "c|2", "c|3"}


def test_a_sweep_spares_whole_items(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "_TERMS", 1)
    engine.documents = {(f"{pk}|1", None): document(1, partition=pk, sort="1") for pk in "abc"}
    assert removed(engine, Table("contract", PAIR), swept, BELOW, [("a",), ("b",)]) == 1
    assert engine.ids() == {"a|1": at(1), "b|1": at(1), "c|1": None}


def test_a_sweep_and_a_purge_stay_in_the_shard_of_a_document(engine: Engine) -> None:
    table = Table("contract", PAIR, {"routing": "pk"})
    engine.documents = {("a|1", "a"): document(1, partition="a", sort="1")}
    assert removed(engine, table, swept, BELOW, []) == 1
    assert engine.ids() == {"a|1": None}
    assert removed(engine, table, forgotten, version(FIRST_EPOCH + 2, 0)) == 1
    assert engine.documents == {}


def test_a_purge_removes_older_tombstones_at_their_own_version(engine: Engine) -> None:
    engine.documents = {
        ("older", None): document(5, deleted=True),
        ("newer", None): document(0, deleted=True, epoch=FIRST_EPOCH + 1),
        ("document", None): document(1),
    }
    assert removed(engine, TABLE, forgotten, BELOW) == 1
    assert engine.ids() == {"newer": None, "document": at(1)}
    assert engine.remembered == {("older", None): at(5)}  # the item's next change may be just one higher


def test_a_purge_spares_documents_stored_since_its_search(engine: Engine) -> None:
    engine.searchable = {("a", None): document(5, deleted=True)}
    engine.documents = {("a", None): document(6)}
    (layout,) = layouts([TABLE]).values()
    piece = forgotten(engine, layout, BELOW)
    (verdict,) = Bulk(engine, Size(8 << 20, 1000), 1).together(layout, piece.lines)
    assert verdict.kind == "conflict"
    assert engine.ids() == {"a": at(6)}


@pytest.mark.parametrize("routing", [None, "r"])
def test_a_tombstone_that_is_stored_again_is_purged_again(engine: Engine, routing: str | None) -> None:
    """Each retry of a parked item leaves it if another of the item's documents is refused."""
    target = SearchTarget(SearchOptions(), "p", engine)
    for _ in range(2):
        engine.documents = {("a", routing): document(5, deleted=True)}
        assert [target.purge(TABLE, BELOW) for _ in range(2)] == [1, 0]
        assert engine.documents == {}


def test_a_stale_search_result_is_not_a_tombstone_stored_again(engine: Engine) -> None:
    target = SearchTarget(SearchOptions(), "p", engine)
    engine.documents = {("a", None): document(5, deleted=True), ("b", None): document(5, deleted=True)}
    engine.searchable = dict(engine.documents)
    assert target.purge(TABLE, BELOW) == 2
    with pytest.raises(TransientError, match=r"still shows 2 document\(s\) that were purged"):
        target.purge(TABLE, BELOW)
    engine.documents = {("a", None): document(5, deleted=True)}
    with pytest.raises(TransientError, match=r"still shows 1 document\(s\) that were purged"):
        target.purge(TABLE, BELOW)


def test_a_purge_spares_tombstones_of_parked_items(engine: Engine) -> None:
    target = SearchTarget(SearchOptions(), "p", engine)
    engine.documents = {("a", None): document(5, deleted=True), ("b", None): document(5, deleted=True)}
    assert [target.purge(TABLE, BELOW, [("a",)]) for _ in range(2)] == [1, 0]
    assert engine.ids() == {"a": None}


def test_a_purge_searches_again_after_an_in_doubt_window_opened(engine: Engine) -> None:
    """The command ``parked retry`` opens one, and may replace a tombstone by a document."""
    target = SearchTarget(SearchOptions(), "p", engine)
    engine.documents = {("a", None): document(5, deleted=True)}
    assert target.purge(TABLE, BELOW) == 1
    engine.documents = {("a", None): document(5)}
    target.in_doubt.begin()
    assert target.purge(TABLE, BELOW) == 0
    assert engine.ids() == {"a": at(5)}


def test_a_purge_searches_again_after_an_item_was_parked(engine: Engine) -> None:
    """A retry of the item may have replaced a tombstone that was found before."""
    target = SearchTarget(SearchOptions(), "p", engine)
    engine.documents = {("a", None): document(5, deleted=True), ("b", None): document(5, deleted=True)}
    assert target.purge(TABLE, BELOW, [("c",)]) == 2
    engine.documents[("a", None)] = document(5)
    assert target.purge(TABLE, BELOW, [("a",), ("c",)]) == 1
    assert engine.ids() == {"a": at(5), "b": None}
    assert target.purge(TABLE, BELOW, [("a",)]) == 0
    assert engine.ids() == {"a": at(5)}


SHARD_BUSY = "es_rejected_execution_exception"


@pytest.mark.parametrize("unread", [("a",), ("b",), ("a", "b")])
def test_a_conflict_lookup_waits_for_a_failing_shard(engine: Engine, copy: Copy, unread: Sequence[str]) -> None:
    replayed = batch(put({"pk": "a"}, 5), put({"pk": "b"}, 5))
    copy.write(replayed)
    engine.unread = dict.fromkeys(unread, SHARD_BUSY)
    with pytest.raises(TransientError, match=rf"a shard of contract-1 fails reading versions \({SHARD_BUSY}\)"):
        copy.write(replayed)
    engine.unread = {}
    assert copy.write(replayed).superseded == {"shard:contract": 2}


@pytest.mark.parametrize("unread", [("a",), ("a", "b")])
def test_a_purge_waits_for_a_failing_shard(engine: Engine, unread: Sequence[str]) -> None:
    target = SearchTarget(SearchOptions(), "p", engine)
    engine.documents = {("a", None): document(5, deleted=True), ("b", None): document(5, deleted=True)}
    engine.searchable = dict(engine.documents)
    assert target.purge(TABLE, BELOW) == 2
    engine.unread = dict.fromkeys(unread, SHARD_BUSY)
    with pytest.raises(TransientError, match=rf"a shard of contract-1 fails reading versions \({SHARD_BUSY}\)"):
        target.purge(TABLE, BELOW)


def test_a_lookup_response_that_lacks_documents_is_a_transient_error(engine: Engine) -> None:
    (layout,) = layouts([TABLE]).values()
    engine._got = lambda wanted: {} if wanted["_id"] == "a" else {"found": False}  # type: ignore[method-assign]
    with pytest.raises(TransientError, match="1 of 2 documents in the response"):
        searches.versions(engine, layout, [("a", None), ("b", None)])


# identity of the index


def found(noted: Mapping[str, Any], uuid: str = "now") -> Index:
    return Index("contract-1", {"_meta": {"replicator": noted}}, {"uuid": uuid}, {})


@pytest.mark.parametrize(
    ("noted", "replaced"), [({"uuid": "now"}, False), ({"uuid": "before"}, True), ({}, False), ({"epoch": 9}, False)]
)
def test_an_index_is_replaced_if_its_notes_name_another_uuid(noted: Mapping[str, Any], replaced: bool) -> None:
    assert found(noted).replaced is replaced


def test_a_replaced_index_accepts_a_new_epoch_but_not_the_current_one() -> None:
    state = State(found({"uuid": "before", "epoch": FIRST_EPOCH}), (), ())
    assert state.replaced(FIRST_EPOCH)
    assert not state.replaced(FIRST_EPOCH + 1)
    assert not State(found({"uuid": "now", "epoch": FIRST_EPOCH}), (), ()).replaced(FIRST_EPOCH)
    assert not State(None, (), ()).replaced(FIRST_EPOCH)
