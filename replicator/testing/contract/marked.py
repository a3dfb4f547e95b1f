"""``deletes: mark``: documents whose item is gone stay, with the time of the deletion."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from msgspec import structs

from replicator.batch import Batch, Delete, DocumentId, Outcome, Part, Write
from replicator.target.contract import OWN_IDS, Table, Target, Transactional
from replicator.target.verification import CHANGED, Repairable
from replicator.testing.contract.kit import PK, Contract, at, batch, exhaust, in_epoch, put
from replicator.testing.memory import MemoryDatabase, MemoryTarget
from replicator.testing.memory_index import MemoryIndex
from replicator.version import FIRST_EPOCH, version

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

    One more fixture: ``marking``. ``histories``: how many random ones are compared, of ``steps`` each.
    """

    histories, steps = 10, 40

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

    @pytest.mark.parametrize("tombstones", [False, True])
    def test_a_delete_that_has_the_last_document_marks_that_one(
        self, marks: Target, marking: Marking, tombstones: bool
    ) -> None:
        """An update may never have been stored, because its item was gone in the same batch; nor the whole item."""
        marks.write(batch(put({"pk": "a", "n": 1}, 1), tombstones=tombstones))
        writes = [gone(pk, 5, TIME, {"pk": pk, "n": 4}) for pk in ("a", "never stored")]
        for outcome in (Outcome(), Outcome(superseded={"shard:contract": 2})):
            assert marks.write(batch(*writes, tombstones=tombstones)) == outcome
        assert marking.live() == set()
        assert {pk: (body["n"], time) for pk, (body, time) in marking.deleted().items()} == {
            "a": (4, TIME),
            "never stored": (4, TIME),
        }
        marks.write(batch(put({"pk": "a", "n": 5}, 5), put({"pk": "never stored", "n": 6}, 6), tombstones=tombstones))
        assert (marking.live(), set(marking.deleted())) == ({"never stored"}, {"a"})

    def test_a_last_document_that_the_target_refuses_is_named_and_changes_nothing(
        self, marks: Target, marking: Marking
    ) -> None:
        """The pipeline comes back without it: the document that is stored is marked."""
        marks.write(batch(put({"pk": "a", "n": 1}, 1)))
        refused = gone("a", 5, TIME, {**self.unacceptable, "pk": "a"})
        (rejection,) = marks.write(batch(refused)).rejections
        assert rejection.write == refused
        assert marking.live() == {"a"}
        assert marks.write(batch(gone("a", 5, TIME))) == Outcome()
        assert marking.deleted()["a"][0]["n"] == 1

    def test_random_histories_end_as_in_memory(self, marks: Target, marking: Marking) -> None:
        for seed in range(self.histories):
            _History(marks, marking, random.Random(seed), f"{seed}-").play(self.steps)

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


def gone(pk: str, ordinal: int, time: float | None = None, last: Mapping[str, object] | None = None) -> Delete:
    return Delete("contract", (pk,), at(ordinal), (pk,), 1, time, last)


class _History:
    """Random writes, sweeps, purges and repairs of a target, and of one in memory: what they store is equal."""

    def __init__(self, target: Target, marking: Marking, chance: random.Random, prefix: str) -> None:
        assert isinstance(target, Repairable)
        self._target, self._marking, self._chance = target, marking, chance
        self._table, self._database = marking.table(), MemoryDatabase()
        memory = MemoryTarget if isinstance(target, Transactional) else MemoryIndex
        self._memory: MemoryTarget | MemoryIndex = memory(self._database)
        self._memory.open([self._table], FIRST_EPOCH)
        self._ids = [f"{prefix}{n}" for n in range(3)]
        self._epoch, self._n = FIRST_EPOCH, 0

    def play(self, steps: int) -> None:
        acts = [self._write] * 6 + [self._sweep, self._purge, self._repair, self._repair]
        for step in range(steps):
            act = self._chance.choice(acts)
            act()
            self._agree(f"step {step}, {act.__name__}")

    def _write(self) -> None:
        ids = self._chance.sample(self._ids, self._chance.randrange(1, len(self._ids) + 1))
        written = batch(*map(self._change, ids), tombstones=self._chance.random() < 0.5)
        assert self._target.write(written) == self._memory.write(written)

    def _change(self, pk: str) -> Write:
        self._n += 1
        newest = version(self._epoch, self._chance.randrange(12))
        if self._chance.random() < 0.5:
            return structs.replace(put({"pk": pk, "n": self._n}, 0), version=newest)
        last = {"pk": pk, "n": self._n} if self._chance.random() < 0.5 else None
        created = TIME + self._n if last is not None or self._chance.random() < 0.5 else None
        return structs.replace(gone(pk, 0, created, last), version=newest)

    def _sweep(self) -> None:
        self._epoch += 1
        below = version(self._epoch, 0)
        exhaust(lambda: self._target.sweep(self._table, below, []))
        exhaust(lambda: self._memory.sweep(self._table, below, []))

    def _purge(self) -> None:
        below = version(self._epoch, 0)
        exhaust(lambda: self._target.purge(self._table, below))
        exhaust(lambda: self._memory.purge(self._table, below))

    def _repair(self) -> None:
        assert isinstance(self._target, Repairable)
        pk = self._chance.choice(self._ids)
        expected = put({"pk": pk, "n": self._n}, 0)
        (ours,), (theirs,) = (one.compare(self._table, [expected]) for one in (self._target, self._memory))
        assert (ours.version, bool(ours.fields)) == (theirs.version, bool(theirs.fields))
        if ours.version is None:
            return
        if self._chance.random() < 0.5:
            write = structs.replace(expected, version=ours.version)
            assert self._target.replace(self._table, [write]) == self._memory.replace(self._table, [write])
        else:
            delete = structs.replace(gone(pk, 0), version=ours.version)
            assert self._target.remove(self._table, [delete]) == self._memory.remove(self._table, [delete])

    def _agree(self, when: str) -> None:
        assert isinstance(self._target, Repairable)
        ids = [(pk,) for pk in self._ids]
        marked, there = self._database.marked[self._table.name], self._marking.read(self._table)
        ours = {id: (there[id][0]["n"], there[id][1] is None) for id in ids if id in there}
        kept = {id: (orjson.loads(one.body)["n"], False) for id, one in marked.items()}
        live = {id: (body["n"], True) for id, body in self._database.documents(self._table.name).items()}
        assert ours == live | kept, when
        times = {id: one.at for id, one in marked.items() if one.at is not None}
        assert {id: there[id][1] for id in times} == times, when
        assert self._target.versions(self._table, ids) == self._memory.versions(self._table, ids), when
