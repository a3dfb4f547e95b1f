"""Tombstones, sweeps of what a rescan did not confirm, and purges."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from replicator.batch import Batch, Delete, DocumentId, Outcome, Part, Upsert, Write
from replicator.errors import ConfigError
from replicator.state import Counts, Save
from replicator.target import in_doubt
from replicator.target.contract import OWN_IDS, Table, Target
from replicator.testing.contract.kit import (
    Contract,
    Stored,
    at,
    at_once,
    batch,
    claim_slots,
    exhaust,
    in_epoch,
    put,
    remove,
    table,
)
from replicator.version import FIRST_EPOCH

_GOING, _STAYING = (1, 3, 4), (0, 2, 5)  # items of a race; shard:1 has the changes of the first three


def _raced(source: str, race: int, slot: int) -> Batch:
    """A page of a scan with all items of a race, or the records of a shard that delete and change some of them."""
    writes: list[Write] = [put({"pk": f"{race} {item}", "n": 0}, 0) for item in (5, 4, 3, 2, 1, 0)]
    if source != "segment:0":
        mine = (2, 0, 1) if source == "shard:1" else (3, 5, 4)
        writes = [_change(f"{race} {item}", going=item in _GOING) for item in mine]
    saves = [Save("slot", f"{slot}", race, f"{race}")]
    return Batch([Part(source, writes, Counts(read=len(writes)))], saves, tombstones=True)


def _change(pk: str, *, going: bool) -> Write:
    return remove(pk, 5) if going else put({"pk": pk, "n": 5}, 5)


class Tombstones(Contract):
    """Tombstones, sweeps of what a rescan did not confirm, and purges."""

    def test_a_scanned_item_does_not_undo_a_live_delete(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(remove("a", 5), tombstones=True))
        assert opened.write(batch(put({"pk": "a"}, 0), put({"pk": "b"}, 0), tombstones=True)).superseded == {
            "shard:contract": 1
        }
        assert set(stored(table())) == {("b",)}

    def test_after_a_delete_the_items_next_change_applies(self, opened: Target, stored: Stored) -> None:
        """Both before and after the tombstones are purged."""
        opened.write(batch(put({"pk": "a"}, 1), put({"pk": "b"}, 1), tombstones=True))
        opened.write(batch(remove("a", 5), remove("b", 5), tombstones=True))
        assert opened.write(batch(put({"pk": "a", "n": 6}, 6), tombstones=True)) == Outcome()
        exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1)))
        assert opened.write(batch(put({"pk": "b", "n": 6}, 6))) == Outcome()
        assert set(stored(table())) == {("a",), ("b",)}

    def test_a_purge_spares_the_tombstones_of_later_epochs(self, opened: Target, stored: Stored) -> None:
        """A run that was taken over may still purge; tombstones that the next epoch's scan needs must stay."""
        opened.write(Batch([Part("", [Delete("contract", ("a",), at(1, FIRST_EPOCH + 1), ("a",))])], tombstones=True))
        opened.write(batch(remove("b", 9), tombstones=True))
        assert exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1))) == 1
        opened.write(Batch([Part("", [in_epoch("a", 0), in_epoch("b", 0)])], tombstones=True))
        assert set(stored(table())) == {("b",)}

    def test_a_purge_takes_no_document_that_came_back(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(remove("a", 5), remove("b", 5), tombstones=True))
        opened.write(batch(put({"pk": "a"}, 6), tombstones=True))
        exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1)))
        assert set(stored(table())) == {("a",)}

    def test_scans_and_live_deletes_race_without_ghosts(
        self, opened: Target, build: Callable[[], Target], stored: Stored
    ) -> None:
        """Each worker has a slot, and connections of its own."""
        workers = {"segment:0": opened, "shard:1": build(), "shard:2": build()}
        for worker in workers.values():
            worker.open([table()], FIRST_EPOCH)
        claim_slots(list(workers.values()))
        with ThreadPoolExecutor(len(workers)) as threads:
            for race in range(self.races):
                start = threading.Barrier(len(workers))
                racing = [
                    threads.submit(at_once, start, worker, _raced(source, race, slot))
                    for slot, (source, worker) in enumerate(workers.items())
                ]
                assert all(not done.result().rejections for done in racing)
        assert {id: row["n"] for (id,), row in stored(table()).items()} == {
            f"{race} {item}": 5 for race in range(self.races) for item in _STAYING
        }

    def test_a_purge_spares_what_a_retry_of_a_parked_item_must_not_bring_back(
        self, opened: Target, stored: Stored
    ) -> None:
        opened.write(batch(remove("parked", 5), remove("gone", 5), tombstones=True))
        spare = [("parked",), ("a\0b",), ("\ud800",), ("x" * 2048,)]
        exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 1), spare))
        opened.write(batch(put({"pk": "parked"}, 0), tombstones=True))
        assert stored(table()) == {}

    def test_a_purge_spares_the_tombstones_of_all_documents_of_an_item(self, target: Target, stored: Stored) -> None:
        own = table(keys=OWN_IDS)
        target.open([own], FIRST_EPOCH)
        ids = [('a"]', "1"), ('a"]', "2"), ("a", "1")]
        removed = [Delete("contract", id, at(5), (id[0],)) for id in ids]
        target.write(batch(*removed, tombstones=True))
        exhaust(lambda: target.purge(own, at(0, FIRST_EPOCH + 1), [('a"]',), ("a\0b",), ("\ud800",)]))
        late = [Upsert("contract", id, {}, at(0), (id[0],)) for id in ids[:2]]
        assert target.write(batch(*late, tombstones=True)).superseded == {"shard:contract": 2}
        assert stored(own) == {}
        assert exhaust(lambda: target.purge(own, at(0, FIRST_EPOCH + 1))) == 2, "the third tombstone was purged before"

    def test_a_sweep_removes_what_is_older(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put({"pk": "old"}, 9), put({"pk": "parked"}, 9)))
        opened.write(Batch([Part("", [in_epoch("new", 1), in_epoch("seen", 0)])], tombstones=True))
        spare = [("parked",), ("a\0b",), ("\ud800",), ("x" * 2048,)]  # not every target can store the others
        exhaust(lambda: opened.sweep(table(), at(0, FIRST_EPOCH + 1), spare))
        assert set(stored(table())) == {("new",), ("seen",), ("parked",)}

    def test_a_sweep_leaves_tombstones(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put({"pk": "a"}, 9), put({"pk": "b"}, 9)))
        exhaust(lambda: opened.sweep(table(), at(0, FIRST_EPOCH + 1), []))
        opened.write(Batch([Part("", [in_epoch("a", 0), in_epoch("b", 1)])], tombstones=True))
        assert set(stored(table())) == {("b",)}

    def test_a_sweep_spares_all_documents_of_an_item(self, target: Target, stored: Stored) -> None:
        own = table(keys=OWN_IDS)
        target.open([own], FIRST_EPOCH)
        ids = [("a", "1"), ("a", "2"), ("b", "1")]
        target.write(batch(*(Upsert("contract", id, {}, at(1), (id[0],)) for id in ids)))
        exhaust(lambda: target.sweep(own, at(0, FIRST_EPOCH + 1), [("a",), ("a\0b",), ("\ud800",), ("x" * 2048,)]))
        assert set(stored(own)) == {("a", "1"), ("a", "2")}

    def test_a_sweep_of_what_cannot_be_deleted_removes_the_rest_and_ends_with_an_error(
        self, opened: Target, stored: Stored, keep: Callable[[Table, DocumentId], None]
    ) -> None:
        opened.write(batch(*(put({"pk": pk}, 9) for pk in ("a", "kept", "z"))))
        keep(table(), ("kept",))
        for _ in range(2):  # the next run ends the same way
            with pytest.raises(ConfigError) as refused:
                exhaust(lambda: opened.sweep(table(), at(0, FIRST_EPOCH + 1), []))
            assert "contract" in str(refused.value)
            assert "cannot be deleted" in str(refused.value)
            assert set(stored(table())) == {("kept",)}

    def test_a_table_remembers_no_deletes_of_one_that_had_its_name(
        self, opened: Target, build: Callable[[], Target], stored: Stored, dropped: Callable[[Table], None]
    ) -> None:
        opened.write(batch(remove("a", 5), tombstones=True))
        dropped(table())
        after = build()
        assert after.epoch([table()]) is None
        after.open([table()], FIRST_EPOCH)
        assert after.write(batch(put({"pk": "a"}, 0), tombstones=True)) == Outcome()
        assert set(stored(table())) == {("a",)}

    def test_sweeps_and_purges_go_through_tables_of_any_size(
        self, opened: Target, stored: Stored, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(in_doubt, "TRUSTED", 3600.0)  # so that slow machines do not run into the limit
        for start in range(0, 6000, 1000):
            opened.write(batch(*(put({"pk": f"{n}"}, 1) for n in range(start, start + 1000))))
        assert exhaust(lambda: opened.sweep(table(), at(0, FIRST_EPOCH + 1), [("77",)])) == 5999
        assert set(stored(table())) == {("77",)}
        assert exhaust(lambda: opened.purge(table(), at(0, FIRST_EPOCH + 2))) == 5999
