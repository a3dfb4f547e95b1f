"""``deletes: mark``: documents whose item is gone stay, with the time of the deletion."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from replicator.batch import Batch, Delete, DocumentId, Outcome, Part
from replicator.target.contract import OWN_IDS, Table, Target
from replicator.target.verification import CHANGED, Repairable
from replicator.testing.contract.kit import PK, Contract, at, batch, exhaust, in_epoch, put
from replicator.version import FIRST_EPOCH

TIME = 1_700_000_000.5
NEXT = at(0, FIRST_EPOCH + 1)


@dataclass(frozen=True, slots=True)
class Marking:
    """``options`` of a table that marks; ``read``: each document, and the time of its deletion, None if it is live."""

    options: Mapping[str, Any]
    read: Callable[[Table], Mapping[DocumentId, tuple[Mapping[str, Any], float | None]]]

    def table(self, keys: Any = PK) -> Table:
        return Table("contract", keys, self.options)

    def live(self) -> set[str]:
        return {id[0] for id, (_, time) in self.read(self.table()).items() if time is None}

    def deleted(self) -> dict[str, tuple[Mapping[str, Any], float]]:
        return {id[0]: (body, time) for id, (body, time) in self.read(self.table()).items() if time is not None}


class MarkedDeletes(Contract):
    """A marked document keeps its last image, and the version of its deletion, which holds back what is older.

    One more fixture: ``marking``.
    """

    @pytest.fixture
    def marking(self) -> Marking:
        pytest.skip("this target does not mark deleted documents")

    @pytest.fixture
    def marks(self, target: Target, marking: Marking) -> Target:
        target.open([marking.table()], FIRST_EPOCH)
        return target

    @pytest.mark.parametrize("tombstones", [False, True])
    def test_a_deleted_document_stays_with_its_last_image_and_its_time(
        self, marks: Target, marking: Marking, tombstones: bool
    ) -> None:
        marks.write(batch(put({"pk": "a", "n": 1}, 1), put({"pk": "b"}, 1), tombstones=tombstones))
        assert marks.write(batch(gone("a", 5, TIME), gone("absent", 5, TIME), tombstones=tombstones)) == Outcome()
        assert marking.live() == {"b"}
        (deleted,) = marking.deleted().values()
        assert (deleted[0]["n"], deleted[1]) == (1, TIME)

    @pytest.mark.parametrize("tombstones", [False, True])
    def test_only_a_newer_write_makes_it_live_again(self, marks: Target, marking: Marking, tombstones: bool) -> None:
        marks.write(batch(put({"pk": "a", "n": 1}, 1), tombstones=tombstones))
        marks.write(batch(gone("a", 5, TIME), tombstones=tombstones))
        for late in (0, 1, 4, 5):
            outcome = marks.write(batch(put({"pk": "a", "n": late}, late), tombstones=tombstones))
            assert outcome == Outcome(superseded={"shard:contract": 1})
        assert marking.deleted()["a"][0]["n"] == 1
        assert marks.write(batch(put({"pk": "a", "n": 6}, 6), tombstones=tombstones)) == Outcome()
        assert (marking.live(), marking.deleted()) == ({"a"}, {})

    def test_the_time_belongs_to_the_image_that_was_deleted(self, marks: Target, marking: Marking) -> None:
        """A repeated delete changes nothing; a later one, of a life that was never stored, moves only the version."""
        marks.write(batch(put({"pk": "a"}, 1)))
        marks.write(batch(gone("a", 5, TIME)))
        assert marks.write(batch(gone("a", 5, TIME + 1))).superseded == {"shard:contract": 1}
        assert marks.write(batch(gone("a", 8, TIME + 2))) == Outcome()
        assert marking.deleted()["a"][1] == TIME
        assert marks.write(batch(put({"pk": "a"}, 7))).superseded == {"shard:contract": 1}

    def test_a_sweep_marks_what_no_scan_found_and_leaves_what_is_marked(self, marks: Target, marking: Marking) -> None:
        marks.write(batch(put({"pk": "old"}, 9), put({"pk": "parked"}, 9), put({"pk": "deleted"}, 1)))
        marks.write(batch(gone("deleted", 5, TIME)))
        marks.write(Batch([Part("", [in_epoch("seen", 0)])], tombstones=True))
        table = marking.table()
        assert exhaust(lambda: marks.sweep(table, NEXT, [("parked",)])) == 1
        assert exhaust(lambda: marks.sweep(table, NEXT, [("parked",)])) == 0
        assert marking.live() == {"seen", "parked"}
        deleted = marking.deleted()
        assert deleted.keys() == {"old", "deleted"}
        assert deleted["deleted"][1] == TIME
        marks.write(Batch([Part("", [in_epoch("old", 0)])], tombstones=True))
        assert marking.live() == {"seen", "parked"}
        marks.write(Batch([Part("", [in_epoch("old", 1)])], tombstones=True))
        assert marking.live() == {"seen", "parked", "old"}

    def test_a_purge_removes_no_marked_document(self, marks: Target, marking: Marking) -> None:
        marks.write(batch(put({"pk": "a"}, 1), tombstones=True))
        marks.write(batch(gone("a", 5, TIME), tombstones=True))
        exhaust(lambda: marks.purge(marking.table(), NEXT))
        assert marking.deleted()["a"][1] == TIME
        assert marks.write(batch(put({"pk": "a"}, 4))).superseded == {"shard:contract": 1}
        assert marking.live() == set()

    def test_a_document_that_its_item_no_longer_has_is_marked(self, target: Target, marking: Marking) -> None:
        own = marking.table(OWN_IDS)
        target.open([own], FIRST_EPOCH)
        ids = [("a", "1"), ("a", "2")]
        target.write(batch(*(put({"pk": "a"}, 1, id=id) for id in ids)))
        target.write(batch(put({"pk": "a"}, 2, id=ids[0]), Delete("contract", ids[1], at(2), ("a",), 0, TIME)))
        assert {id: time for id, (_, time) in marking.read(own).items()} == {ids[0]: None, ids[1]: TIME}

    def test_comparison_takes_marked_documents_for_absent_unless_their_item_is_there(
        self, marks: Target, marking: Marking
    ) -> None:
        assert isinstance(marks, Repairable)
        table = marking.table()
        marks.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
        marks.write(batch(gone("a", 5, TIME)))
        assert marks.versions(table, [("a",), ("b",)]) == [None, at(1)]
        assert list(marks.walk(table, None).ids) == [("b",)]
        first, second = marks.compare(table, [put({"pk": "a"}, 0), put({"pk": "b"}, 0)])
        assert (first.version, len(first.fields)) == (at(5), 1)
        assert (second.version, second.fields) == (at(1), ())

    def test_a_repair_marks_what_is_too_much_and_unmarks_what_is_there(self, marks: Target, marking: Marking) -> None:
        assert isinstance(marks, Repairable)
        table = marking.table()
        marks.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1)))
        marks.write(batch(gone("a", 5, TIME)))
        assert marks.remove(table, [gone("b", 1)]) == [""]
        assert marks.remove(table, [gone("b", 1), gone("a", 5)]) == [CHANGED, CHANGED]
        assert marks.replace(table, [put({"pk": "a", "n": 2}, 4)]) == [CHANGED]
        assert marks.replace(table, [put({"pk": "a", "n": 2}, 5)]) == [""]
        assert (marking.live(), set(marking.deleted())) == ({"a"}, {"b"})
        assert marks.write(batch(put({"pk": "b"}, 1), tombstones=True)).superseded == {"shard:contract": 1}


def gone(pk: str, ordinal: int, time: float | None = None) -> Delete:
    return Delete("contract", (pk,), at(ordinal), (pk,), 1, time)
