"""From an item's changes to its writes: the last state wins, ids in between are deleted, everything is counted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replicator import Document, documents
from replicator.batch import Delete, Upsert, Write
from replicator.change import Change, Page, Record
from replicator.hooks.hook import DocumentMapping, Hook, Poison
from replicator.hooks.time_limit import HookTimeout
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.key import Key, key_text
from replicator.pipeline.advance import streamed
from replicator.pipeline.compaction import (
    BatchContext,
    Compacted,
    Latest,
    compact_latest,
    compact_runs,
    latest,
    newest,
    run_writes,
    runs,
)
from replicator.pipeline.parked import Held, ParkedItems, held, item_of, parked_id
from replicator.state import Dropped, Parked, Save, ShardState, decode
from replicator.version import FIRST_EPOCH, version

EPOCH = FIRST_EPOCH + 1
A: Key = ("a",)
B: Key = ("b",)
C: Key = ("c",)


def kept(item: Item) -> Mapping[str, object] | None:
    """Even values are kept; 13 is poison."""
    v = int(item["v"])
    if v == 13:
        raise ValueError("unlucky")
    return {"v": v} if v % 2 == 0 else None


@documents
def fanned(item: Item) -> Iterator[Document]:
    """One document per letter of ``to``; a "!" is poison."""
    for letter in item["to"]:
        if letter == "!":
            raise ValueError("not that one")
        yield Document(letter, {"to": item["to"]}, "vowels" if letter in "aeiou" else "others")


def mapping(function: Callable[[Item], Any] | None, *tables: str) -> DocumentMapping:
    declared = getattr(function, "__replicator_documents__", False)
    return DocumentMapping(function and Hook("hook", function, "", declared), tables or ("orders",))


PLAIN, FILTER, FAN = mapping(None), mapping(kept), mapping(fanned, "vowels", "others")


def at(*parked: str, refused: Mapping[tuple[Key, int], str] | None = None) -> BatchContext:
    return BatchContext(refused or {}, ParkedItems.of(map(Held, parked)), EPOCH, "shard:s", 5.0)


def change(key: Key, ordinal: int, new: object = None, old: object = None, *, scanned: bool = False) -> Change:
    """Images are given as the value of ``v``, or, where they are text, of ``to``."""
    sequence = None if scanned else str(ordinal)
    return Change(key, version(EPOCH, ordinal), _image(new), _image(old), sequence, 1.0)


def record(key: Key, sequence: int, new: object = None, old: object = None) -> Record:
    return Record(key, str(sequence), 1.0, _image(new), _image(old))


def _image(value: object) -> bytes | None:
    return None if value is None else image({"to" if isinstance(value, str) else "v": value})


def entry(key: Key, ordinal: int, epoch: int = EPOCH) -> str:
    return f"{key_text(key)}@{version(epoch, ordinal):019d}"


def parked(found: Compacted) -> dict[str, Parked | None]:
    """What happens to parked entries: the stored value, or None if removed."""
    assert all(s.kind == "parked" and s.expected == (1 if s.text is None else 0) for s in found.saves)
    assert len({s.id for s in found.saves}) == len(found.saves)
    return {s.id: None if s.text is None else decode("parked", s.id, s.text) for s in found.saves}  # type: ignore[misc]


def short(writes: Sequence[Write]) -> list[tuple[Any, ...]]:
    """(table, id, body or None for a delete, ordinal, weight)"""
    return [
        (w.table, w.id, dict(w.body) if isinstance(w, Upsert) else None, w.version - version(EPOCH, 0), w.weight)
        for w in writes
    ]


# the last change of each item


def weighed(*changes: tuple[Change, int]) -> list[Latest]:
    """Changes with their weights, as ``latest`` gives them."""
    return [(each, each.version, weight) for each, weight in changes]


def test_the_last_change_of_an_item_replaces_all_earlier_ones() -> None:
    numbered = enumerate([record(A, 1, 1), record(B, 2, 1), record(A, 3, 2), record(A, 4, 3)], start=7)
    last = {r.key: (v - version(EPOCH, 0), r.sequence, weight) for r, v, weight in latest(numbered, EPOCH)}
    assert last == {A: (10, "4", 3), B: (8, "2", 1)}


def test_the_changes_of_each_item_keep_their_order() -> None:
    numbered = enumerate([record(A, 1, 1), record(B, 2, 1), record(A, 3, 2)], start=7)
    sequences = {key: [c.sequence for c in run] for key, run in runs(numbered, EPOCH).items()}
    assert sequences == {A: ["1", "3"], B: ["2"]}


# one document an item


def test_without_a_hook_the_image_itself_is_stored() -> None:
    compacted = compact_latest(weighed((change(A, 3, 1), 2)), PLAIN, at())
    assert short(compacted.writes) == [("orders", A, {"v": 1}, 3, 2)]
    assert (compacted.read, compacted.filtered, compacted.parked, compacted.saves) == (2, 0, 0, [])


def test_without_a_hook_an_image_is_not_even_parsed() -> None:
    bad = Change(A, version(EPOCH, 1), b"not JSON", None, "1")
    (write,) = compact_latest(weighed((bad, 1)), PLAIN, at()).writes
    assert isinstance(write, Upsert)
    assert isinstance(write.body, Item)


def test_a_removal_deletes() -> None:
    compacted = compact_latest(weighed((change(A, 3, None, 2), 4)), FILTER, at())
    assert short(compacted.writes) == [("orders", A, None, 3, 4)]
    assert (compacted.read, compacted.filtered) == (4, 0)


def odd(item: Item) -> Any:
    """Filters even values, and fails on 0."""
    return {"odd": item["v"]} if 1 // item["v"] >= 0 and item["v"] % 2 else None


@pytest.mark.parametrize(
    ("images", "last", "vanished"),
    [
        ([1, 3, None], {"odd": 3}, 2),
        ([None, 1, None], {"odd": 1}, 2),  # the item came and went
        ([1, 2, None], {"odd": 1}, 1),  # it had left the filter before it was deleted
        ([1, 0, None], {"odd": 1}, 2),  # the hook failed on the image between: the document was still there
        ([2, 4, None], None, 1),  # what another hook had stored left the filter with the first change
        ([1, 2, 4], {"odd": 1}, 1),
        ([1, 3], None, None),  # it is there
    ],
)
def test_a_delete_that_marks_has_the_last_document_and_the_time_when_it_vanished(
    images: Sequence[int | None], last: Mapping[str, object] | None, vanished: int | None
) -> None:
    """However the changes are cut into batches: each of them may come with those before it, or alone."""
    for declared in (False, True):
        function = documents(lambda item: [] if odd(item) is None else [Document("d", odd(item))]) if declared else odd
        marks = DocumentMapping(Hook("hook", function, "", declared), ("orders",), frozenset({"orders"}))
        pairs = enumerate(itertools.pairwise(images), start=1)
        run = [Change(A, version(EPOCH, n), _image(new), _image(old), str(n), float(n)) for n, (old, new) in pairs]
        write = next(iter(_compacted({A: run}, marks).writes), None)
        if vanished is None:
            assert isinstance(write, Upsert)
        elif write is None:
            assert last is None
        else:
            assert isinstance(write, Delete)
            assert (write.last, write.created) == (last, float(vanished))


def _compacted(items: Mapping[Key, Sequence[Change]], marks: DocumentMapping) -> Compacted:
    return compact_runs(items, marks, at()) if marks.own_ids else compact_latest(newest(items), marks, at(), items)


@pytest.mark.parametrize("images", list(itertools.product([1, 2, 0, None], repeat=3)))
def test_without_old_images_a_mark_has_the_same_time_however_the_changes_are_cut(images: Sequence[int | None]) -> None:
    marks = DocumentMapping(Hook("hook", odd, "", False), ("orders",), frozenset({"orders"}))
    run = [Change(A, version(EPOCH, n), _image(new), None, str(n), float(n)) for n, new in enumerate(images, start=1)]
    cuts = ([run], [run[:1], run[1:]], [run[:2], run[2:]], [run[:1], run[1:2], run[2:]])
    assert len({_marked_at(batches, marks) for batches in cuts if not _is_parked(batches)}) <= 1


def _marked_at(batches: Sequence[Sequence[Change]], marks: DocumentMapping) -> float | None:
    """When a document that was stored before these batches vanished, as the target notes it; None if it is live."""
    noted: float | None = None
    for batch in batches:
        for write in _compacted({A: batch}, marks).writes:
            gone = write.created if isinstance(write, Delete) else None
            noted = noted if isinstance(write, Delete) and noted is not None and write.last is None else gone
    return noted


def _is_parked(batches: Sequence[Sequence[Change]]) -> bool:
    """Whether a batch ends with an image on which the hook fails: its item is parked, and the rest waits with it."""
    return any(batch[-1].new == _image(0) for batch in batches)


def test_a_table_that_does_not_mark_gets_no_last_document() -> None:
    two = DocumentMapping(FAN.hook, FAN.tables, frozenset({"vowels"}))
    run = [change(A, 3, None, "ab")]
    assert [
        (w.table, dict(w.last or {})) for w in compact_runs({A: run}, two, at()).writes if isinstance(w, Delete)
    ] == [
        ("others", {}),
        ("vowels", {"to": "ab"}),
    ]


def test_an_item_that_leaves_the_filter_is_deleted_and_counted_as_filtered_once() -> None:
    compacted = compact_latest(weighed((change(A, 3, 1), 4)), FILTER, at())
    assert short(compacted.writes) == [("orders", A, None, 3, 0)]
    assert (compacted.read, compacted.filtered) == (4, 4)


def test_a_scanned_item_outside_the_filter_needs_no_delete() -> None:
    compacted = compact_latest(weighed((change(A, 0, 1, scanned=True), 1)), FILTER, at())
    assert (compacted.writes, compacted.filtered) == ([], 1)


def test_a_poison_item_is_parked_with_image_and_traceback_and_others_are_stored() -> None:
    compacted = compact_latest(
        weighed((change(A, 1, 2), 1), (change(B, 2, 13, 2), 3), (change(C, 3, 4), 1)), FILTER, at()
    )
    assert [w.id for w in compacted.writes] == [A, C]
    assert (compacted.read, compacted.parked) == (5, 3)
    ((id, kept),) = parked(compacted).items()
    assert id == entry(B, 2)
    assert kept is not None
    assert (kept.key, kept.version, kept.sequence, kept.source, kept.parked) == (
        B,
        version(EPOCH, 2),
        "2",
        "shard:s",
        5.0,
    )
    assert (kept.new, kept.old) == ('{"v":{"N":"13"}}', '{"v":{"N":"2"}}')
    assert kept.reason.startswith("hook hook raised ValueError at test_compaction.py:")
    assert ("unlucky" in kept.traceback, kept.words) == (True, "ValueError: unlucky")


def test_a_change_that_the_target_refused_is_parked_with_its_reason_without_calling_the_hook() -> None:
    refused = {(A, version(EPOCH, 1)): "too long"}
    compacted = compact_latest(weighed((change(A, 1, 13), 1), (change(B, 2, 2), 1)), FILTER, at(refused=refused))
    assert [w.id for w in compacted.writes] == [B]
    assert parked(compacted)[entry(A, 1)].reason == "too long"  # type: ignore[union-attr]


def test_a_refusal_applies_to_one_version_only() -> None:
    refused = {(A, version(EPOCH, 1)): "too long"}
    assert [w.id for w in compact_latest(weighed((change(A, 2, 2), 1)), FILTER, at(refused=refused)).writes] == [A]


def test_an_image_that_is_not_valid_text_can_be_parked() -> None:
    bad = Change(A, version(EPOCH, 1), b'{"v":{"S":"\xff"}}', None, "1")
    compacted = compact_latest(weighed((bad, 1)), FILTER, at())
    assert parked(compacted)[entry(A, 1)].new == '{"v":{"S":"\ufffd"}}'  # type: ignore[union-attr]


def test_a_later_good_change_heals_the_item() -> None:
    compacted = compact_latest(weighed((change(A, 5, 2), 1)), FILTER, at(entry(A, 3), entry(B, 4)))
    assert parked(compacted) == {entry(A, 3): None}


@pytest.mark.parametrize("new", [None, 1], ids=["removed", "left the filter"])
def test_a_delete_heals_the_item_too(new: int | None) -> None:
    assert parked(compact_latest(weighed((change(A, 5, new), 1)), FILTER, at(entry(A, 3)))) == {entry(A, 3): None}


def test_only_the_newest_parked_change_of_an_item_is_kept() -> None:
    compacted = compact_latest(weighed((change(A, 5, 13), 1)), FILTER, at(entry(A, 3)))
    assert {id: p is not None for id, p in parked(compacted).items()} == {entry(A, 3): False, entry(A, 5): True}


def test_a_replayed_poison_change_replaces_itself() -> None:
    compacted = compact_latest(weighed((change(A, 5, 13), 1)), FILTER, at(entry(A, 5)))
    assert [(s.id, s.text is None) for s in compacted.saves] == [(entry(A, 5), False)]


def test_a_scanned_item_does_not_heal_a_parked_change_of_the_stream() -> None:
    """The page may have been read before the change was made; if not, a later record will follow and resolve it."""
    compacted = compact_latest(weighed((change(A, 0, 2, scanned=True), 1)), FILTER, at(entry(A, 3)))
    assert compacted.saves == []
    assert [w.version for w in compacted.writes] == [version(EPOCH, 0)]


def test_a_poison_scanned_item_does_not_replace_a_parked_change_of_the_stream() -> None:
    compacted = compact_latest(weighed((change(A, 0, 13, scanned=True), 1)), FILTER, at(entry(A, 3)))
    assert (compacted.saves, compacted.writes, compacted.read, compacted.parked) == ([], [], 1, 1)


def test_a_scanned_item_resolves_a_change_parked_in_an_earlier_epoch() -> None:
    before = entry(A, 99, EPOCH - 1)
    assert parked(compact_latest(weighed((change(A, 0, 2, scanned=True), 1)), FILTER, at(before))) == {before: None}


# documents with ids of their own


def writes(*run: Change) -> list[tuple[Any, ...]]:
    """(table, id of its own, body or None, ordinal, weight)"""
    written = short(run_writes(run, FAN))
    assert {id[0] for _, id, *_ in written} <= {key_text(A)}
    return [(table, id[1], *rest) for table, id, *rest in written]


def test_documents_are_stored_by_item_and_id_in_their_table() -> None:
    assert writes(change(A, 4, "ab")) == [("vowels", "a", {"to": "ab"}, 4, 1), ("others", "b", {"to": "ab"}, 4, 0)]


def test_documents_that_only_the_old_image_has_are_deleted() -> None:
    assert writes(change(A, 4, "b", "abc")) == [
        ("others", "b", {"to": "b"}, 4, 1),
        ("others", "c", None, 4, 0),
        ("vowels", "a", None, 4, 0),
    ]


def test_ids_in_between_are_deleted_because_another_run_may_have_stored_them() -> None:
    written = writes(change(A, 4, "b", "a"), change(A, 5, "c", "b"), change(A, 6, "d", "c"))
    assert written == [
        ("others", "d", {"to": "d"}, 6, 3),
        ("others", "b", None, 6, 0),
        ("others", "c", None, 6, 0),
        ("vowels", "a", None, 6, 0),
    ]


def test_documents_of_an_expired_item_stay_beside_those_of_a_later_item() -> None:
    """An item put under a key is new: nothing reveals which documents an expired one had."""
    shard = ShardState(None, "1", whole=True, since=0.0)
    expired = Record(A, "4", 1.0, None, _image("ab"), expired=True)
    pages = [Page("s", (expired,), False, 1.0), Page("s", (record(A, 5, "c"),), False, 1.0)]
    _, found = streamed(shard, pages, FAN, at(), ignore_expired=True)
    assert short(found.writes) == [("others", ('["a"]', "c"), {"to": "c"}, 2, 1)]
    assert (found.read, found.filtered) == (2, 1)


def test_an_id_that_comes_back_is_not_deleted() -> None:
    assert writes(change(A, 4, "b", "a"), change(A, 5, "a", "b")) == [
        ("vowels", "a", {"to": "a"}, 5, 2),
        ("others", "b", None, 5, 0),
    ]


def test_a_removal_deletes_all_documents_of_the_item() -> None:
    assert writes(change(A, 4, "ab", None), change(A, 5, None, "ab")) == [
        ("others", "b", None, 5, 2),
        ("vowels", "a", None, 5, 0),
    ]


def test_ids_of_different_items_never_collide() -> None:
    both = {A: [change(A, 1, "a")], B: [change(B, 2, "a")]}
    assert {w.id for w in compact_runs(both, FAN, at()).writes} == {(key_text(A), "a"), (key_text(B), "a")}


def test_changes_that_result_in_no_write_are_filtered() -> None:
    compacted = compact_runs({A: [change(A, 1, ""), change(A, 2, "", "")]}, FAN, at())
    assert (compacted.read, compacted.filtered, compacted.writes) == (2, 2, [])


def test_an_item_whose_newest_image_is_poison_is_parked_whole_and_others_are_stored() -> None:
    items = {A: [change(A, 1, "a"), change(A, 2, "!", "a"), change(A, 4, "!b", "!")], B: [change(B, 3, "e")]}
    compacted = compact_runs(items, FAN, at())
    assert [w.item for w in compacted.writes] == [B]
    assert (compacted.read, compacted.parked, compacted.filtered) == (4, 3, 0)
    ((id, entry_),) = parked(compacted).items()
    assert entry_ is not None
    assert (id, entry_.changes, entry_.leaves) == (entry(A, 4), {"shard:s": 3}, (("vowels", "a"),))
    assert entry_.reason.startswith("hook hook raised ValueError")


def test_a_poison_intermediate_image_blocks_nothing() -> None:
    """Nothing of it can be stored; the images before and after it are known."""
    compacted = compact_runs({A: [change(A, 1, "!", "a"), change(A, 2, "b", "!")]}, FAN, at())
    assert [(type(w).__name__, w.id[1]) for w in compacted.writes] == [("Upsert", "b"), ("Delete", "a")]
    assert compacted.parked == 0


def test_a_later_good_change_resolves_an_item_and_removes_what_its_parked_changes_left() -> None:
    first = compact_runs({A: [change(A, 1, "!", "ab")]}, FAN, at())
    held_ = first.moves[0].after
    assert held_ is not None
    around = BatchContext({}, ParkedItems.of([held_]), EPOCH, "shard:s", 5.0)
    second = compact_runs({A: [change(A, 2, "!!", "!")]}, FAN, around)
    assert [(s.id, s.expected, s.text is None) for s in second.saves] == [
        (entry(A, 1), 1, True),
        (entry(A, 2), 0, False),
    ]
    after = second.moves[0].after
    assert after is not None
    assert (after.changes, after.since) == ({"shard:s": 2}, 5.0)

    around = BatchContext({}, ParkedItems.of([after]), EPOCH, "shard:s", 5.0)
    third = compact_runs({A: [change(A, 3, "bc", "!!")]}, FAN, around)
    assert {(type(w).__name__, w.id[1]) for w in third.writes} == {("Upsert", "b"), ("Upsert", "c"), ("Delete", "a")}
    assert parked(third) == {entry(A, 2): None}


def test_what_a_discarded_change_left_is_removed_by_the_items_next_change() -> None:
    left = Held(entry(A, 3), leaves=frozenset({("vowels", "a")}))
    around = BatchContext({}, ParkedItems.of([], [left]), EPOCH, "shard:s", 5.0)
    compacted = compact_runs({A: [change(A, 4, "b", "!")]}, FAN, around)
    assert {(type(w).__name__, w.id[1]) for w in compacted.writes} == {("Upsert", "b"), ("Delete", "a")}
    assert compacted.saves == [Save("dropped", entry(A, 3), 1, None)]

    parked_again = compact_runs({A: [change(A, 4, "!", "!")]}, FAN, around)
    (value,) = [m.value for m in parked_again.moves if m.value is not None]
    assert value.leaves == (("vowels", "a"),)


def test_a_scanned_image_older_than_a_parked_or_discarded_change_has_no_effect() -> None:
    scanned = {A: [change(A, 0, "a", scanned=True)]}
    compacted = compact_runs(scanned, FAN, at(entry(A, 3)))
    assert (compacted.parked, compacted.filtered, compacted.writes, compacted.saves) == (1, 0, [], [])
    around = BatchContext({}, ParkedItems.of([], [Held(entry(A, 3))]), EPOCH, "shard:s", 5.0)
    compacted = compact_runs(scanned, FAN, around)
    assert (compacted.parked, compacted.filtered, compacted.writes, compacted.saves) == (0, 1, [], [])


def test_with_one_document_per_item_too_a_scanned_image_older_than_a_discarded_change_has_no_effect() -> None:
    around = replace(at(), parked=ParkedItems.of([], [Held(entry(A, 3), discarded=True)]))
    compacted = compact_latest(
        weighed((change(A, 0, 2, scanned=True), 1), (change(B, 0, 4, scanned=True), 1)), FILTER, around
    )
    assert [w.id for w in compacted.writes] == [B]
    assert (compacted.read, compacted.filtered, compacted.saves) == (2, 1, [])

    compacted = compact_latest(weighed((change(A, 4, 2), 1)), FILTER, around)
    assert [w.id for w in compacted.writes] == [A]
    assert compacted.saves == [Save("dropped", entry(A, 3), 1, None)]


def test_the_image_that_a_discarded_change_kept_is_kept_when_the_item_is_parked_again() -> None:
    base, other = '{"to":{"S":"x!"}}', '{"to":{"S":"y!"}}'
    left = [Held(entry(A, 2), base=base), Held(entry(A, 3), base=other), Held(entry(A, 1), base='{"to":{"S":"a"}}')]
    around = replace(at(), mixed=True, parked=ParkedItems.of([], left))
    compacted = compact_runs({A: [change(A, 4, "!", "!")]}, FAN, around)
    (value,) = [move.value for move in compacted.moves if move.value is not None]
    assert (value.base, value.leaves) == (base, (("vowels", "a"),))
    gone = {s.id for s in compacted.saves if s.kind == "dropped"}
    assert gone == {entry(A, 1), entry(A, 2)}, "an entry holds one image: the other's stays"

    for move in compacted.moves:
        around.parked.apply(move)
    both = compact_runs({A: [change(A, 5, "b", "!")]}, FAN, around)
    assert both.parked == 1, "documents of these images may exist"

    good = compact_runs({A: [change(A, 4, "b", "!")]}, FAN, replace(around, parked=ParkedItems.of([], left)))
    assert good.parked == 0, "a person gave it up: its next change is stored"


def test_a_poison_old_image_parks_the_item_only_if_an_earlier_hook_may_have_stored_its_documents() -> None:
    items = {A: [change(A, 1, "a", "!")]}
    assert compact_runs(items, FAN, at()).parked == 0
    mixed = replace(at(), mixed=True)
    compacted = compact_runs(items, FAN, mixed)
    ((_, value),) = parked(compacted).items()
    assert value is not None
    assert (compacted.parked, value.base) == (1, '{"to":{"S":"!"}}')
    assert value.reason.startswith("the hook fails on an earlier image of the item, whose documents must be removed: ")

    held_ = compacted.moves[0].after
    assert held_ is not None
    still = replace(mixed, parked=ParkedItems.of([held_]))
    assert compact_runs({A: [change(A, 2, "b", "a")]}, FAN, still).parked == 1
    fixed = mapping(documents(lambda item: [Document(letter, {}, "others") for letter in item["to"]]), *FAN.tables)
    writes = compact_runs({A: [change(A, 2, "b", "a")]}, fixed, still).writes
    assert ("others", (key_text(A), "!")) in {(w.table, w.id) for w in writes if isinstance(w, Delete)}


TIMES: dict[str, BaseException] = {"it took too long": HookTimeout(10.0), "there was no memory": MemoryError()}


@pytest.mark.parametrize("why", TIMES)
@pytest.mark.parametrize("marks", [frozenset[str](), frozenset(FAN.tables)], ids=["removed", "marked"])
@pytest.mark.parametrize("new", [None, "b"], ids=["gone", "changed"])
def test_an_old_image_that_the_hook_may_have_handled_before_parks_the_item(
    why: str, marks: frozenset[str], new: str | None
) -> None:
    """Otherwise the documents that it made of the image, when the machine was less busy, would stay for good."""
    busy = True

    @documents
    def hook(item: Item) -> Iterator[Document]:
        if busy and "a" in item["to"]:
            raise TIMES[why]
        return fanned(item)

    own = replace(mapping(hook, *FAN.tables), marks=marks)
    run = {A: [change(A, 1, new, "a")]}
    compacted = compact_runs(run, own, at())
    ((_, value),) = parked(compacted).items()
    assert value is not None
    assert (compacted.writes, compacted.parked, value.base) == ([], 1, '{"to":{"S":"a"}}')
    assert value.reason.startswith("the hook fails on an earlier image of the item, whose documents must be removed: ")
    with pytest.raises(Poison, match="the hook fails on an earlier image of the item"):
        run_writes(run[A], own)

    held_ = compacted.moves[0].after
    assert held_ is not None
    still = replace(at(), parked=ParkedItems.of([held_]))
    assert compact_runs({A: [change(A, 2, "e", new)]}, own, still).parked == 1, "it still takes too long"
    busy = False
    writes = compact_runs({A: [change(A, 2, "e", new)]}, own, still).writes
    assert {w.id[1] for w in writes if isinstance(w, Delete)} >= {"a"}
    assert {w.id[1] for w in writes if isinstance(w, Upsert)} == {"e"}


def test_so_does_an_image_in_the_middle_of_a_batch_which_an_attempt_may_have_stored() -> None:
    @documents
    def hook(item: Item) -> Iterator[Document]:
        if "e" in item["to"]:
            raise HookTimeout(10.0)
        return fanned(item)

    compacted = compact_runs({A: [change(A, 1, "e", "a"), change(A, 2, "b", "e")]}, mapping(hook, *FAN.tables), at())
    ((_, value),) = parked(compacted).items()
    assert value is not None
    assert (compacted.parked, value.base, value.leaves) == (2, '{"to":{"S":"e"}}', (("others", "b"), ("vowels", "a")))


def test_documents_of_every_image_that_took_too_long_are_removed_once_the_hook_has_said_which_they_are() -> None:
    """A scan may have stored those of the one that was parked, too, and an entry has room for one image."""
    busy = True

    @documents
    def hook(item: Item) -> Iterator[Document]:
        if busy:
            raise HookTimeout(10.0)
        return fanned(item)

    own, items = mapping(hook, *FAN.tables), ParkedItems()
    for run in ([change(A, 1, "a", "e")], [change(A, 2, None, "a")]):
        compacted = compact_runs({A: run}, own, replace(at(), parked=items))
        assert (compacted.writes, compacted.parked) == ([], 1)
        for move in compacted.moves:
            items.apply(move)
    busy = False
    writes = compact_runs({A: [change(A, 3, "b")]}, own, replace(at(), parked=items)).writes
    assert {w.id[1] for w in writes if isinstance(w, Delete)} == {"a", "e"}
    compacted = compact_runs({A: [change(A, 3, "b")]}, own, replace(at(), parked=items))
    assert {save.kind: save.text for save in compacted.saves} == {"parked": None, "dropped": None}


@pytest.mark.parametrize("always", [False, True], ids=["took too long", "always fails"])
def test_what_a_person_discarded_parks_the_next_change_only_if_it_may_have_documents(always: bool) -> None:
    """A scan may have stored the image that took too long in the stream, but not one on which the hook always fails."""

    @documents
    def hook(item: Item) -> Iterator[Document]:
        if "a" in item["to"]:
            raise ValueError if always else HookTimeout(10.0)
        return fanned(item)

    own = mapping(hook, *FAN.tables)
    (move,) = compact_runs({A: [change(A, 1, "a")]}, own, at()).moves
    assert isinstance(move.value, Parked)
    discarded = held(entry(A, 1), 1, Dropped(move.value.leaves or (), move.value.base, discarded=A))
    after = replace(at(), parked=ParkedItems.of([], [discarded]))
    for new in (None, "b"):
        compacted = compact_runs({A: [change(A, 2, new, "a")]}, own, after)
        assert (compacted.parked, bool(compacted.writes)) == (not always, always and new is not None)
    if not always:
        (value,) = (move.value for move in compacted.moves if isinstance(move.value, Parked))
        assert value.base == '{"to":{"S":"a"}}'
        discarded = held(entry(A, 2), 1, Dropped((), value.base, discarded=A))
        after = replace(at(), parked=ParkedItems.of([], [discarded]))
        writes = compact_runs({A: [change(A, 3, "e", "b")]}, own, after).writes
        assert {w.id[1] for w in writes} == {"b", "e"}, "discarded a second time: the item goes on"


def test_each_change_of_an_item_that_always_takes_too_long_costs_the_same_and_few_images_are_kept() -> None:
    calls = 0

    @documents
    def hook(item: Item) -> Iterator[Document]:
        nonlocal calls
        calls += 1
        raise HookTimeout(10.0)

    own, items = mapping(hook, *FAN.tables), ParkedItems()
    for n in range(1, 20):
        calls = 0
        for move in compact_runs({A: [change(A, n, n, n - 1)]}, own, replace(at(), parked=items)).moves:
            items.apply(move)
        assert calls == 2, "the new image and the old one"
    assert len(items.dropped(key_text(A))) < 3


def test_a_refusal_by_the_target_parks_all_changes_of_the_item_with_its_reason() -> None:
    refused = {(A, version(EPOCH, 2)): "too long"}
    compacted = compact_runs({A: [change(A, 1, "a"), change(A, 2, "e", "a")]}, FAN, at(refused=refused))
    assert (compacted.writes, compacted.refused) == ([], [(A, version(EPOCH, 2))])
    assert {id: p and (p.reason, p.leaves) for id, p in parked(compacted).items()} == {
        entry(A, 2): ("too long", (("vowels", "a"), ("vowels", "e")))
    }


def test_a_change_parked_in_an_earlier_epoch_blocks_nothing_and_is_resolved() -> None:
    before = entry(A, 99, EPOCH - 1)
    compacted = compact_runs({A: [change(A, 0, "a", scanned=True)]}, FAN, at(before))
    assert [w.item for w in compacted.writes] == [A]
    assert parked(compacted) == {before: None}


def test_a_poison_change_replaces_a_change_parked_in_an_earlier_epoch() -> None:
    before = entry(A, 99, EPOCH - 1)
    compacted = compact_runs({A: [change(A, 4, "!")]}, FAN, at(before))
    assert {id: p is not None for id, p in parked(compacted).items()} == {before: False, entry(A, 4): True}


# parked items


def test_an_entrys_id_names_its_item_and_orders_it_by_version() -> None:
    ids = [parked_id(A, version(EPOCH, n)) for n in (1, 9, 10, 1 << 40)]
    assert sorted(ids) == ids
    assert {item_of(id) for id in ids} == {key_text(A)}


@pytest.mark.parametrize("key", [("a@0000000000000000001",), ("@",), ("x" * 600,)])
def test_an_item_is_found_whatever_its_key_looks_like(key: Key) -> None:
    assert item_of(parked_id(key, 1)) == key_text(key)


# counting


def conserved(found: Compacted) -> bool:
    """Every change read is filtered, parked, or counted with a write."""
    return found.read == found.filtered + found.parked + sum(w.weight for w in found.writes)


EVENTS = st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from([None, 1, 2, 4, 13])), max_size=30)
PARKED = st.sets(st.sampled_from([entry(k, n, e) for k in (A, B) for n in (0, 3) for e in (EPOCH - 1, EPOCH)]))


@given(events=EVENTS, before=PARKED)
def test_every_change_is_counted_with_one_document_per_item(
    events: list[tuple[Key, int | None]], before: set[str]
) -> None:
    numbered = [(n, record(key, n, new)) for n, (key, new) in enumerate(events, start=4)]
    compacted = compact_latest(latest(numbered, EPOCH), FILTER, at(*before))
    assert compacted.read == len(events)
    assert conserved(compacted)
    assert len({w.id for w in compacted.writes}) == len(compacted.writes)


@given(
    events=st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from([None, "", "a", "bc", "!"]))), before=PARKED
)
def test_every_change_is_counted_with_documents_with_their_own_ids(
    events: list[tuple[Key, str | None]], before: set[str]
) -> None:
    images: dict[Key, str | None] = {}
    numbered = []
    for n, (key, new) in enumerate(events, start=4):
        numbered.append((n, record(key, n, new, images.get(key))))
        images[key] = new
    compacted = compact_runs(runs(numbered, EPOCH), FAN, at(*before))
    assert compacted.read == len(events)
    assert conserved(compacted)
    assert len({(w.table, w.id) for w in compacted.writes}) == len(compacted.writes)


@given(events=st.lists(st.sampled_from([None, "", "a", "bc", "ab", "e"]), min_size=1), cut=st.integers(0, 30))
def test_any_page_boundary_gives_the_same_documents(events: list[str | None], cut: int) -> None:
    changes = [change(A, n, new, events[n - 2] if n > 1 else None) for n, new in enumerate(events, start=1)]

    def stored(*parts: Sequence[Change]) -> dict[Any, Any]:
        documents: dict[Any, Any] = {}
        for part in parts:
            for write in run_writes(part, FAN) if part else ():
                if isinstance(write, Delete):
                    documents.pop((write.table, write.id), None)
                else:
                    documents[write.table, write.id] = dict(write.body)
        return documents

    whole = stored(changes)
    assert stored(changes[:cut], changes[cut:]) == whole
    assert stored(changes, changes[cut:]) == whole  # a replay
    assert stored(*([c] for c in changes)) == whole


def test_a_batch_lists_its_counts_before_the_target_responds() -> None:
    compacted = compact_latest(weighed((change(A, 1, 2), 2), (change(B, 2, 13), 1), (change(C, 3, 1), 3)), FILTER, at())
    part = compacted.part("shard:s")
    assert (part.source, part.writes) == ("shard:s", compacted.writes)
    assert (part.counts.read, part.counts.filtered, part.counts.parked, part.counts.applied) == (6, 3, 1, 0)
    assert [type(s) for s in compacted.saves] == [Save]


def test_a_delete_carries_the_time_of_its_change() -> None:
    """Of the last change of a run; a scanned item has none."""
    removed = compact_latest(latest([(1, record(A, 1, None, 2)), (2, record(B, 2, 3, 2))], EPOCH), FILTER, at()).writes
    assert [(w.id, w.created) for w in removed if isinstance(w, Delete)] == [(A, 1.0), (B, 1.0)]
    run = [at_time(change(A, 1, "ab"), 5.0), at_time(change(A, 2, None, "ab"), 9.0)]
    assert {w.created for w in run_writes(run, FAN) if isinstance(w, Delete)} == {9.0}


def at_time(given: Change, created: float) -> Change:
    return Change(given.key, given.version, given.new, given.old, given.sequence, created)


def test_of_several_exports_an_older_one_replaces_neither_what_was_parked_nor_what_was_discarded() -> None:
    """All their items have the version of the scan, and the newest export is read first."""
    older = (change(A, 0, "old", scanned=True), version(EPOCH, 0), 1)
    held_ = Held(entry(A, 0))
    for around, count in ((ParkedItems.of([held_]), "parked"), (ParkedItems.of([], [held_]), "filtered")):
        context = BatchContext({}, around, EPOCH, "segment:0", 5.0, newest_first=True)
        found = compact_latest([older], PLAIN, context)
        assert (found.writes, found.moves, getattr(found, count)) == ([], [], 1)
        again = compact_latest([older], PLAIN, replace(context, newest_first=False))
        assert len(again.writes) == 1, "what a scan reads again is what it parked"
