"""Comparison and repair of stored documents: see ``replicator.target.verification``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, ClassVar

import pytest

from replicator.batch import Batch, Delete, DocumentId, Part, Upsert
from replicator.items.attributes import image
from replicator.items.item import Item
from replicator.target.contract import OWN_IDS, Table, Target
from replicator.target.verification import CHANGED, Comparison, CursorExpired, Repairable, Verifiable, Walked
from replicator.testing.contract.kit import (
    MOST_PIECES,
    PAIR,
    Contract,
    Stored,
    as_json,
    at,
    batch,
    exhaust,
    put,
    remove,
    table,
)
from replicator.version import FIRST_EPOCH

BASE: Mapping[str, object] = {
    "pk": "a",
    "text": "one",
    "number": Decimal("12345678901234567890123456789012345678"),
    "fraction": Decimal("0.10"),
    "texts": {"x", "y"},
    "map": {"deep": [1, {"n": Decimal("1.5")}]},
}
CHANGES: Mapping[str, object] = {
    "text": "One",
    "number": Decimal("12345678901234567890123456789012345679"),
    "fraction": Decimal("0.11"),
    "texts": {"x", "z"},
    "map": {"deep": [1, {"n": Decimal("1.6")}]},
}


class Verification(Contract):
    """What is stored equals what should be, or the fields that differ are named; repairs compare the version."""

    many: ClassVar[int] = 2500
    """Documents that take several pieces of a walk."""

    def test_what_was_written_compares_equal(self, opened: Target) -> None:
        """With every type, an item as it is and what a hook makes of it, at whatever version."""
        target = verifiable(opened)
        item = put(self.every_type, 3)
        hook = Upsert("contract", ("hook",), {**self.every_type, "pk": "hook"}, at(4), ("hook",))
        amended = Upsert("contract", ("put",), Item(image({**BASE, "pk": "put"})) | {"text": "theirs"}, at(5), ("put",))
        opened.write(batch(item, hook, amended))
        expected = [put(self.every_type, 0), hook, amended]
        assert [c.fields for c in target.compare(table(), expected)] == [(), (), ()]
        assert [c.version for c in target.compare(table(), expected)] == [at(3), at(4), at(5)]
        assert target.compare(table(), []) == []

    def test_equal_numbers_are_equal_however_they_are_written(self, opened: Target) -> None:
        target = verifiable(opened)
        written = Item(b'{"pk":{"S":"a"},"n":{"N":"1.50"},"m":{"M":{"n":{"N":"1E+2"}}},"s":{"NS":["2","10.0"]}}')
        same = Item(b'{"n":{"N":"1.5"},"m":{"M":{"n":{"N":"100"}}},"s":{"NS":["10","2"]},"pk":{"S":"a"}}')
        opened.write(batch(Upsert("contract", ("a",), written, at(1), ("a",))))
        assert self._fields(target, Upsert("contract", ("a",), same, at(1), ("a",))) == ()

    @pytest.mark.parametrize("name", CHANGES)
    def test_a_changed_value_is_a_difference_of_its_field(self, opened: Target, name: str) -> None:
        target = verifiable(opened)
        opened.write(batch(put({**BASE, name: CHANGES[name]}, 1)))
        assert self._fields(target, put(BASE, 1)) == (name,)
        opened.write(batch(put({n: v for n, v in BASE.items() if n != name}, 2)))
        assert self._fields(target, put(BASE, 1)) == (name,)

    def test_documents_that_are_absent_have_no_version(self, opened: Target) -> None:
        """Tombstones included."""
        target = verifiable(opened)
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
        opened.write(batch(remove("b", 2), tombstones=True))
        assert target.versions(table(), [("c",), ("a",), ("b",)]) == [None, at(1), None]
        assert target.versions(table(), []) == []
        absent = Comparison(None)
        assert target.compare(table(), [put({"pk": "c"}, 1), put({"pk": "b"}, 1)]) == [absent, absent]

    def test_a_document_that_cannot_be_stored_is_refused_with_a_reason(self, opened: Target) -> None:
        target = verifiable(opened)
        opened.write(batch(put({"pk": "a"}, 1)))
        poor = Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        good, refused = target.compare(table(), [put({"pk": "a"}, 1), poor])
        assert (good.version, good.fields, good.refused) == (at(1), (), "")
        assert len(refused.refused) > 10

    def test_a_walk_finds_every_document_and_no_tombstone(self, opened: Target) -> None:
        target = verifiable(opened)
        names = ["a", "é", '"', "a,b", "漢", "\U0001f600", *(f"{n:04}" for n in range(self.many))]
        opened.write(batch(*(put({"pk": name}, 1) for name in names)))
        opened.write(batch(remove("0007", 2), tombstones=True))
        assert sorted(walked(target, table())) == sorted((name,) for name in names if name != "0007")

    def test_a_cursor_that_is_used_again_skips_nothing(self, opened: Target, build: Callable[[], Target]) -> None:
        """After a lost response, or by another process: it finds what is behind it, or it has expired. So does one that
        is behind an id within the piece.
        """
        target = verifiable(opened)
        opened.write(batch(*(put({"pk": f"{n:04}"}, 1) for n in range(self.many))))
        first = target.walk(table(), None)
        if first.cursor is None:
            pytest.skip("a piece has room for all of them")
        second = target.walk(table(), first.cursor)
        with suppress(CursorExpired):
            assert begin_alike(target.walk(table(), first.cursor), second.ids)
        with suppress(CursorExpired):
            assert begin_alike(verifiable(build()).walk(table(), first.cursor), second.ids)
        if first.behind is not None:
            assert begin_alike(target.walk(table(), first.behind(9)), [*first.ids, *second.ids][10:])

    def test_a_walk_finds_the_documents_of_an_item(self, target: Target) -> None:
        own, pair = table(keys=OWN_IDS), table("pair", PAIR)
        target.open([own, pair], FIRST_EPOCH)
        ids = [('["a"]', "1"), ('["a"]', "2"), ('["b"]', "1")]
        target.write(batch(*(Upsert("contract", id, {"n": n}, at(1), ("a",)) for n, id in enumerate(ids))))
        target.write(batch(*(put({"pk": "a", "sk": n}, 1, id=("a", str(n)), table="pair") for n in (1, 10, -2))))
        within = verifiable(target)
        assert sorted(walked(within, own)) == ids
        assert sorted(walked(within, own, ('["a"]',))) == ids[:2]
        assert sorted(walked(within, pair)) == [("a", "-2"), ("a", "1"), ("a", "10")]
        assert within.versions(own, [('["a"]', "3"), ids[2]]) == [None, at(1)]

    def test_a_replacement_keeps_the_version_and_never_replaces_another_one(
        self, opened: Target, stored: Stored
    ) -> None:
        """The next change is only one version higher, so a higher one would turn it away."""
        target = repairable(opened)
        opened.write(batch(*(put({"pk": pk, "n": 1}, 5) for pk in "abc"), remove("d", 5), tombstones=True))
        opened.write(batch(remove("c", 6), tombstones=True))
        results = target.replace(
            table(), [put({"pk": pk, "n": 2}, v) for pk, v in (("a", 5), ("b", 4), ("c", 5), ("d", 5))]
        )
        assert list(results) == ["", CHANGED, CHANGED, CHANGED]
        assert stored(table()) == {("a",): as_json({"pk": "a", "n": 2}), ("b",): as_json({"pk": "b", "n": 1})}
        assert opened.write(batch(put({"pk": "a", "n": 3}, 5))).superseded == {"shard:contract": 1}
        opened.write(batch(put({"pk": "a", "n": 4}, 6)))
        assert stored(table())["a",] == as_json({"pk": "a", "n": 4})

    def test_a_replacement_that_cannot_be_stored_is_refused(self, opened: Target, stored: Stored) -> None:
        target = repairable(opened)
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b", "n": 1}, 1)))
        poor = Upsert("contract", ("a",), self.unacceptable, at(1), ("a",))
        refused, done = target.replace(table(), [poor, put({"pk": "b", "n": 2}, 1)])
        assert len(refused) > 10
        assert refused != CHANGED
        assert done == ""
        assert stored(table()) == {("a",): {"pk": "a"}, ("b",): as_json({"pk": "b", "n": 2})}

    def test_a_removal_leaves_a_tombstone_and_takes_nothing_newer(self, opened: Target, stored: Stored) -> None:
        target = repairable(opened)
        opened.write(batch(*(put({"pk": pk}, 5) for pk in "ab")))
        results = target.remove(
            table(), [Delete("contract", (pk,), at(v), (pk,), 0) for pk, v in (("a", 5), ("b", 4), ("c", 5))]
        )
        assert list(results) == ["", CHANGED, CHANGED]
        assert set(stored(table())) == {("b",)}
        late = Batch([Part("shard:contract", [put({"pk": "a"}, 4)])], tombstones=True)
        assert opened.write(late).superseded == {"shard:contract": 1}
        assert opened.write(batch(put({"pk": "a"}, 6), tombstones=True)).superseded == {}
        assert set(stored(table())) == {("a",), ("b",)}
        exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1)))

    def _fields(self, target: Verifiable, write: Upsert) -> tuple[str, ...]:
        (comparison,) = target.compare(table(), [write])
        assert comparison.version is not None
        assert comparison.refused == ""
        return comparison.fields


def verifiable(target: Any) -> Verifiable:
    if not isinstance(target, Verifiable):
        pytest.skip("this target compares no documents")
    return target


def repairable(target: Any) -> Repairable:
    if not isinstance(target, Repairable) or target.unrepairable:
        pytest.skip("this target cannot be repaired")
    return target


def begin_alike(piece: Walked, ids: Sequence[DocumentId]) -> bool:
    """Pieces of the same walk may be of different lengths."""
    both = list(zip(piece.ids, ids, strict=False))
    return both != [] and all(one == other for one, other in both)


def walked(target: Verifiable, of: Table, within: DocumentId = ()) -> list[DocumentId]:
    ids: list[DocumentId] = []
    cursor: str | None = None
    for _ in range(MOST_PIECES):
        piece = target.walk(of, cursor, within)
        if piece.versions is not None:
            assert list(piece.versions) == list(target.versions(of, piece.ids))
        ids += piece.ids
        if (cursor := piece.cursor) is None:
            return ids
    raise AssertionError(f"no end after {MOST_PIECES} pieces")
