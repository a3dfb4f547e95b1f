"""Targets that commit checkpoint entries together with the rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replicator.batch import Batch, Part, Upsert
from replicator.errors import Fenced
from replicator.state import Counts, Save
from replicator.target.contract import Pipelined, Target
from replicator.testing.contract.kit import (
    Contract,
    Stored,
    at,
    batch,
    owner,
    put,
    remove,
    table,
    transactional,
)
from replicator.version import FIRST_EPOCH


class Transactions(Contract):
    """Targets that commit checkpoint entries together with the rows."""

    def test_entries_commit_with_the_rows(self, opened: Target, build: Callable[[], Target], stored: Stored) -> None:
        checkpoints = transactional(opened).checkpoints
        checkpoints.claim(owner("first"))
        saves = [Save("shard", "s", 0, "{}"), Save("pulse", "", None, "{}")]
        opened.write(batch(put({"pk": "a"}, 1), saves=saves))
        found = {(e.kind, e.id): e.revision for e in transactional(build()).checkpoints.read().entries}
        assert found == {("owner", ""): 1, ("shard", "s"): 1, ("pulse", ""): 1}
        assert set(stored(table())) == {("a",)}

    def test_heartbeats_may_be_saved_while_a_batch_is_in_flight(self, opened: Target, stored: Stored) -> None:
        """A slow hook may be at work on the next batch, whatever becomes of this one."""
        checkpoints = transactional(opened).checkpoints
        checkpoints.claim(owner("first"))
        if not isinstance(opened, Pipelined):
            pytest.skip("this target does not overlap")
        poor = Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        for n, write in enumerate((put({"pk": "a"}, 1), poor, put({"pk": "c"}, 1))):
            opened.send(opened.encode(batch(write, saves=[Save("shard", str(n), 0, "{}")])))
            while not opened.ready():
                pass
            for text in ('{"a": 1}', '{"a": 2}'):
                checkpoints.save([Save("pulse", "", None, text)])
            assert [r.write for r in opened.collect().rejections] == [write] * (write is poor)
        found = {(e.kind, e.id): e.revision for e in checkpoints.read().entries}
        assert found == {("owner", ""): 1, ("shard", "0"): 1, ("shard", "2"): 1, ("pulse", ""): 6}
        assert set(stored(table())) == {("a",), ("c",)}

    def test_a_batch_in_flight_that_another_run_has_fenced_stays_so_after_a_heartbeat(
        self, opened: Target, build: Callable[[], Target], stored: Stored
    ) -> None:
        checkpoints = transactional(opened).checkpoints
        checkpoints.claim(owner("first"))
        if not isinstance(opened, Pipelined):
            pytest.skip("this target does not overlap")
        transactional(build()).checkpoints.claim(owner("second"))
        opened.send(opened.encode(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "{}")])))
        while not opened.ready():
            pass
        with pytest.raises(Fenced):
            checkpoints.save([Save("pulse", "", None, "{}")])
        with pytest.raises(Fenced):
            opened.collect()
        assert stored(table()) == {}

    def test_a_rejection_moves_no_entry(self, opened: Target) -> None:
        checkpoints = transactional(opened).checkpoints
        checkpoints.claim(owner("first"))
        poor = Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        opened.write(batch(poor, saves=[Save("shard", "s", 0, "{}")]))
        assert [e.kind for e in checkpoints.read().entries] == ["owner"]

    def test_a_refused_save_stores_nothing(self, opened: Target, stored: Stored) -> None:
        transactional(opened).checkpoints.claim(owner("first"))
        with pytest.raises(Fenced):
            opened.write(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 7, "{}")]))
        assert stored(table()) == {}

    def test_a_later_claim_fences_the_earlier_run(
        self, opened: Target, build: Callable[[], Target], stored: Stored
    ) -> None:
        transactional(opened).checkpoints.claim(owner("first"))
        opened.write(batch(put({"pk": "a"}, 1), saves=[Save("shard", "s", 0, "{}")]))
        later = build()
        later.open([table()], FIRST_EPOCH)
        claimed = transactional(later).checkpoints.claim(owner("second"))
        assert [(e.kind, e.revision) for e in claimed.entries] == [("owner", 2), ("shard", 1)]
        assert claimed.counts == {"shard:contract": Counts(read=1, applied=1)}
        for fenced in (batch(put({"pk": "b"}, 2)), batch(remove("a", 2)), Batch()):
            with pytest.raises(Fenced):
                opened.write(fenced)
        with pytest.raises(Fenced):
            opened.sweep(table(), at(9), [])
        with pytest.raises(Fenced):
            transactional(opened).checkpoints.save([Save("pulse", "", None, "{}")])
        assert set(stored(table())) == {("a",)}

    def test_counts_always_add_up(self, opened: Target) -> None:
        checkpoints = transactional(opened).checkpoints
        checkpoints.claim(owner("first"))
        opened.write(batch(put({"pk": "a"}, 5, weight=2), remove("b", 5)))
        opened.write(batch(put({"pk": "a"}, 4, weight=4), put({"pk": "c"}, 4), remove("a", 5, table="contract")))
        parked = Part("shard:contract", (), Counts(read=3, filtered=2, parked=1))
        opened.write(Batch([parked]))
        (counts,) = checkpoints.read().counts.values()
        assert counts == Counts(read=12, applied=4, superseded=5, filtered=2, parked=1)
