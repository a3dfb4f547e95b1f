"""Versions and batches: the newest version wins however often writes repeat, and every rejection is reported."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from replicator.batch import Batch, DocumentId, Outcome, Part, Upsert, Write
from replicator.target.contract import Forecasting, Pipelined, Table, Target
from replicator.testing.contract.kit import (
    Contract,
    Stored,
    as_json,
    at,
    batch,
    put,
    remove,
    table,
)
from replicator.version import FIRST_EPOCH


class Batches(Contract):
    """Versions and batches: the newest version wins however often writes repeat, and every rejection is reported."""

    def test_writing_again_changes_nothing(self, opened: Target, stored: Stored) -> None:
        again = batch(put({"pk": "a"}, 1), remove("b", 1))
        opened.write(again)
        before = stored(table())
        opened.write(again)
        assert stored(table()) == before

    def test_an_equal_or_older_version_is_superseded(self, opened: Target, stored: Stored) -> None:
        opened.write(batch(put({"pk": "a", "n": 5}, 5), put({"pk": "b"}, 5)))
        outcome = opened.write(
            batch(put({"pk": "a", "n": 4}, 4, weight=3), remove("b", 5, weight=2), put({"pk": "c"}, 1))
        )
        assert outcome == Outcome(superseded={"shard:contract": 5})
        assert stored(table()) == {("a",): as_json({"pk": "a", "n": 5}), ("b",): {"pk": "b"}, ("c",): {"pk": "c"}}

    def test_superseded_changes_are_counted_by_source(self, opened: Target) -> None:
        opened.write(batch(*(put({"pk": pk}, 5) for pk in "abc")))
        parts = [Part("shard:1", [put({"pk": "a"}, 5), put({"pk": "d"}, 5)]), Part("segment:2", [put({"pk": "b"}, 4)])]
        assert opened.write(Batch(parts)).superseded == {"shard:1": 1, "segment:2": 1}

    def test_a_replayed_history_converges(self, target: Target, stored: Stored) -> None:
        """Any history, interrupted anywhere and resumed from any earlier point in other batches, ends like a dict."""
        names = [f"replay{seed}" for seed in range(self.seeds)]
        target.open([table(name) for name in names], FIRST_EPOCH)
        for seed, name in enumerate(names):
            wanted = _replay(target, name, random.Random(seed))
            assert stored(table(name)) == wanted, f"seed {seed}"

    # batches

    def test_an_empty_batch_is_fine(self, opened: Target, stored: Stored) -> None:
        assert opened.write(Batch()) == Outcome()
        assert opened.write(Batch([Part("shard:1")])) == Outcome()
        assert stored(table()) == {}

    def test_several_tables_in_one_batch(self, target: Target, stored: Stored) -> None:
        target.open([table("orders"), table("lines")], FIRST_EPOCH)
        target.write(batch(put({"pk": "a"}, 1, table="orders"), put({"pk": "a"}, 1, table="lines")))
        target.write(batch(remove("a", 2, table="orders"), put({"pk": "b"}, 2, table="lines")))
        assert (set(stored(table("orders"))), set(stored(table("lines")))) == (set(), {("a",), ("b",)})

    def test_the_largest_item(self, opened: Target, stored: Stored) -> None:
        large = {"pk": "a", "text": 'é"\n' * 75_000, "binary": os.urandom(90_000)}
        opened.write(batch(put(large, 1)))
        assert stored(table()) == {("a",): as_json(large)}

    def test_a_full_page(self, opened: Target, stored: Stored) -> None:
        page = [{"pk": f"{n:04}", "note": "x" * 1000, "n": n} for n in range(1000)]
        assert opened.write(batch(*(put(item, 1) for item in page))) == Outcome()
        assert stored(table()) == {(item["pk"],): as_json(item) for item in page}

    def test_what_cannot_be_stored_is_a_rejection_and_nothing_moves(self, opened: Target, stored: Stored) -> None:
        """The item is rejected with a reason; the rest of its batch is stored when it is sent again without it."""
        good, poor = put({"pk": "a"}, 1), Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        outcome = opened.write(batch(good, poor))
        assert [r.write for r in outcome.rejections] == [poor]
        assert len(outcome.rejections[0].reason) > 10
        opened.write(batch(good))
        assert set(stored(table())) == {("a",)}

    def test_what_a_refused_batch_had_stored_is_sent_again(self, opened: Target, stored: Stored) -> None:
        """Its changes may return in another order, behind older ones of their documents, and be rejected again."""
        poor = Upsert("contract", ("z",), self.unacceptable, at(1), ("z",))
        opened.write(batch(put({"pk": "a"}, 1)))
        assert opened.write(batch(remove("a", 4), remove("b", 4), poor)).rejections
        older = put({"pk": "a", "n": 2}, 2), put({"pk": "b", "n": 2}, 2)
        assert opened.write(batch(*older, poor)).rejections
        opened.write(batch(remove("a", 4), remove("b", 4)))
        assert stored(table()) == {}

    def test_says_in_advance_what_it_would_refuse(self, target: Target) -> None:
        """Without a table, and without creating one."""
        if not isinstance(target, Forecasting):
            pytest.skip("this target cannot tell in advance")
        good, poor = put({"pk": "a"}, 1), Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        (rejection,) = target.refusals([table()], [good, poor, remove("c", 1)])
        assert rejection.write == poor
        assert len(rejection.reason) > 10
        assert target.epoch([table()]) is None

    def test_a_refusal_at_commit_is_a_rejection_too(
        self, opened: Target, stored: Stored, refuse_at_commit: Callable[[Table], None]
    ) -> None:
        """Deferred constraints fail once everything is sent. Exactly the offending writes are rejected."""
        refuse_at_commit(table())
        good = [put({"pk": f"{n:03}"}, 1) for n in range(60)]
        poor = [put({"pk": f"{n:03}x", "late": True}, 1) for n in (0, 31, 59)]
        given = batch(*good, *poor, remove("gone", 1))
        outcome = opened.write(given)
        assert sorted(r.write.id for r in outcome.rejections) == [w.id for w in poor]
        assert all(len(r.reason) > 10 for r in outcome.rejections)
        assert stored(table()) == {}
        assert opened.write(batch(*good, remove("gone", 1))) == Outcome()
        assert set(stored(table())) == {w.id for w in good}

    def test_sending_and_collecting_is_writing(self, opened: Target, stored: Stored) -> None:
        if not isinstance(opened, Pipelined):
            pytest.skip("this target does not overlap")
        for ordinal in (1, 2):
            opened.send(opened.encode(batch(put({"pk": "a", "n": ordinal}, ordinal))))
            while not opened.ready():
                pass
            assert opened.collect() == Outcome()
        poor = Upsert("contract", ("b",), self.unacceptable, at(1), ("b",))
        opened.send(opened.encode(batch(poor)))
        assert [r.write for r in opened.collect().rejections] == [poor]
        assert stored(table()) == {("a",): as_json({"pk": "a", "n": 2})}


def _replay(target: Target, name: str, chance: random.Random) -> dict[DocumentId, Any]:
    """Write a random history in batches, restarting from earlier points. Returns the expected documents."""
    history = [_change(name, ordinal, chance) for ordinal in range(1, 80)]
    reached = 0
    while reached < len(history):
        start = chance.randint(max(0, reached - 20), reached)
        reached = chance.randint(start, min(start + 25, len(history)))
        cuts = sorted({start, reached, *(chance.randint(start, reached) for _ in range(3))})
        for first, last in pairwise(cuts):
            target.write(batch(*{w.id: w for w in history[first:last]}.values(), tombstones=chance.random() < 0.5))
    wanted = {w.id: w for w in history}
    return {id: as_json(dict(w.body)) for id, w in wanted.items() if isinstance(w, Upsert)}


def _change(name: str, ordinal: int, chance: random.Random) -> Write:
    pk = chance.choice("abcdefg")
    if chance.random() < 0.3:
        return remove(pk, ordinal, table=name)
    return put({"pk": pk, "n": ordinal}, ordinal, table=name)
